"""How many replicas each model should have, and how they come about. Pure: time, loads and room are arguments."""
