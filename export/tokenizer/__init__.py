"""Turns a checkpoint's tokenizer into the sentencepiece model and ids of a bundle."""
