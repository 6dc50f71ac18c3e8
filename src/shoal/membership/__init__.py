"""The cluster's nodes and their orders: events in, instructions out, no I/O."""
