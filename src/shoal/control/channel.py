"""The service that the head offers, how both ends set up gRPC for it, and whom a server hears."""

from __future__ import annotations

from typing import Any

import grpc.aio

from shoal.security.certificates import Role, role_of

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


def role_at(context: grpc.aio.ServicerContext[Any, Any]) -> Role | None:
    """What the certificate says that the other end is; None if it shows none or says nothing."""
    return role_of([name.decode(errors="replace") for name in context.auth_context().get("x509_subject_alternative_name", ())])
