"""Which node runs which layers: pure arithmetic over what was measured."""
