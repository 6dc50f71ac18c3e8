"""What a head remembers of what happened: events, steps and requests, the last day, metrics."""
