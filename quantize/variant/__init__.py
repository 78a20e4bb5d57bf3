"""From lossless graphs to a variant's: transform, choose schemes, round, write."""
