"""The engine for other processes: the head serves it on a Unix socket, and each API worker has its own engine object on top."""
