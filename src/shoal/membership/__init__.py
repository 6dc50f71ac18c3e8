"""The cluster's nodes and the orders to them: events in, instructions out, no I/O."""
