"""From a checkpoint to a bundle. Needs the extra `export`; PyTorch only to verify."""
