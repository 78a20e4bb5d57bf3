"""Files of a bundle: how they are read and trusted, how they are written whole or not at all."""
