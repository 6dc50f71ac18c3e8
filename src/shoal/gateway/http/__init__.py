"""HTTP itself: supervised connections, the answers to errors, and which API a request uses."""
