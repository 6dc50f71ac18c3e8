"""The messages of the control conversation: the one door to the generated stubs."""

from __future__ import annotations

from shoal.control.cluster_pb2 import (
    ClusterDescription,
    DescribeRequest,
    Failed,
    HeadMessage,
    Heartbeat,
    Join,
    Leave,
    Link,
    Linked,
    Load,
    Loaded,
    NodeDescription,
    NodeMessage,
    Probe,
    Probed,
    Refuse,
    Shutdown,
    Unload,
    Welcome,
)

__all__ = [
    "ClusterDescription",
    "DescribeRequest",
    "Failed",
    "HeadMessage",
    "Heartbeat",
    "Join",
    "Leave",
    "Link",
    "Linked",
    "Load",
    "Loaded",
    "NodeDescription",
    "NodeMessage",
    "Probe",
    "Probed",
    "Refuse",
    "Shutdown",
    "Unload",
    "Welcome",
]

SERVICE = "shoal.Cluster"
ATTEND = f"/{SERVICE}/Attend"
DESCRIBE = f"/{SERVICE}/Describe"
OPTIONS = [("grpc.keepalive_time_ms", 10000), ("grpc.keepalive_timeout_ms", 5000), ("grpc.so_reuseport", 0)]
