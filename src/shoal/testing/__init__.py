"""Whole clusters in one process, on a simulated clock and network, from a seed. Nothing imports it but tests."""
