"""The two processes: the head and a node's agent. They carry out what the pure parts decide."""
