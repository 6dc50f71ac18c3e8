"""Which node runs which layers: pure arithmetic over measurements."""
