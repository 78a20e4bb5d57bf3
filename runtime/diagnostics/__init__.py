"""Whether a bundle is whole, how fast it is, how much memory it takes."""
