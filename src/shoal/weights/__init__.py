"""Weights that do not all fit into memory: which of them are there, and how the others are read."""
