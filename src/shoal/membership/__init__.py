"""Who is in the cluster and what it is told to do: events in, instructions out, no I/O."""
