"""Answers from a bundle. Needs numpy, onnxruntime, sentencepiece and Pillow, nothing else."""
