"""Frames between processes: one contract, over TCP and over memory."""
