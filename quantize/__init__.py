"""Graphs in memory: how they are stored, and the passes that make them smaller."""
