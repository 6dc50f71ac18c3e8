"""/v1/batches: many requests in a file, answered in the lowest class, below those that somebody waits for."""
