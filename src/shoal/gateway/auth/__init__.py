"""Who asks, and how much: keys, limits, and the gate before a request's body is read."""
