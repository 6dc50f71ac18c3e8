"""Frames between processes: one contract, over TCP and in memory."""
