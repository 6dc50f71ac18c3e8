"""Processes on this machine: a whole cluster, and those that serve the API."""
