"""Changes of weights that keep the function: fold, rotate, smooth."""
