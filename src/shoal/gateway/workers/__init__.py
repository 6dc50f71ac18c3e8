"""The engine from other processes: the head serves it on a Unix socket, each API worker has one of its own over it."""
