"""Files of a bundle: how they are read and verified, and how they are written atomically."""
