"""Policies in front of an engine, and what they keep."""
