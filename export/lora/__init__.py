"""Reads LoRA adapters, and merges them into a checkpoint or adds them to a bundle."""
