"""What clients ask for: a package, or a file, for each endpoint."""
