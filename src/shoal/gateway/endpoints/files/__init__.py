"""/v1/files: the files that batches read and write."""
