"""Many images: from wherever they come, through the model, to wherever answers go."""
