"""LoRA adapters: read, merged into a checkpoint, or added to a bundle."""
