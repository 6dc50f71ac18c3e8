"""The tensor protocol: bytes in, frames out, no I/O."""
