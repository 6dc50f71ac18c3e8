"""Decides which tokens run in which step: pure decisions, no I/O."""
