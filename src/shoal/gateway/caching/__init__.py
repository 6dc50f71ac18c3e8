"""Engines that give answers again."""
