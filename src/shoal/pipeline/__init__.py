"""Keeps the stages of a route busy."""
