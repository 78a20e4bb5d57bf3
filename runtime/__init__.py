"""Answers from a bundle. Needs numpy, onnxruntime, sentencepiece and Pillow, nothing else.

What is public is imported from `paligemma_edge` itself.
"""
