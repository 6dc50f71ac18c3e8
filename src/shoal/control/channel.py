"""The service that the head offers, and how both ends set up gRPC for it."""

from __future__ import annotations

SERVICE = "shoal.Cluster"
ATTEND = f"/{SERVICE}/Attend"
DESCRIBE = f"/{SERVICE}/Describe"
DISMISS = f"/{SERVICE}/Dismiss"
OPTIONS = [
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),  # machines of a cluster talk to each other directly, even if a proxy leads to the internet
]
