"""Measures speed and memory of a bundle's variants, side by side with transformers."""
