"""Who sends requests, and how many: keys, limits, and the gate before a request's body is read."""
