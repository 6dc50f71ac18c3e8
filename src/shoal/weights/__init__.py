"""Weights that do not all fit into memory: packed files, which of their parts are in memory, and how the others are read."""
