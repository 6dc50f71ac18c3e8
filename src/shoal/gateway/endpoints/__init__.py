"""The endpoints: a package or a file for each."""
