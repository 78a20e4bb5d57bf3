"""Compares a bundle with the original model in transformers, stage by stage."""
