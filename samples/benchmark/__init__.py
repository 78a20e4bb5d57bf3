"""Speed and memory of variants, beside transformers."""
