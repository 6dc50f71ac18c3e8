"""Keeps the stages of a route full."""
