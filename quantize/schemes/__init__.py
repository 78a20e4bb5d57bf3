"""What stands in for a layer: blocks of 4 or 8 bits, integers, half precision."""
