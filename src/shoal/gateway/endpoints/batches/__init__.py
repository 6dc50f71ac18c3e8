"""/v1/batches: many requests in a file, answered below those that somebody waits for."""
