"""The engines for other processes: the head serves them on a Unix socket, and each API worker has engine objects of its own on top."""
