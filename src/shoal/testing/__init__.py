"""Whole clusters in one process, on a simulated clock and network, from a seed. Only tests import it."""
