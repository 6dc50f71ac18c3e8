"""Models: their layers (spec), the origin of their files (sources), and the contents of the files (weights)."""
