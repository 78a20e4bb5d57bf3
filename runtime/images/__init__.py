"""Images of any accepted kind to pixel values."""
