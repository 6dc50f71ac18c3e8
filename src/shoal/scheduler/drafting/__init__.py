"""Guesses at the next tokens of a sequence, which one step verifies together: how they are made, and how many pay."""
