"""Models: what their layers are (spec), where their files come from (sources), and what is in the files (weights)."""
