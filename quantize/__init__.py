"""From a lossless bundle to smaller variants."""
