"""Processes on this machine: a whole cluster, and the API workers."""
