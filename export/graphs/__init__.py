"""Builds the ONNX graphs of PaliGemma: vision encoder, projector, decoder and mask decoder."""
