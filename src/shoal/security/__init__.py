"""Cluster membership: the cluster's certificate authority, certificates for mutual TLS, and pairing by a short code."""
