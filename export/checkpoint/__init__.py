"""What a checkpoint is: its files, configs, tensors and their names, in every layout."""
