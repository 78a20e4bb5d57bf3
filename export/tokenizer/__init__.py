"""The checkpoint's tokenizer as a sentencepiece model."""
