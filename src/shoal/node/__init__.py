"""The two processes: the head and the agent of a node. They carry out what the pure parts decide."""
