"""Graphs in memory and on disk: linear layers, weights that are computed when they are read."""
