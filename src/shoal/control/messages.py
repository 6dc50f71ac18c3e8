"""The messages of the control conversation: the one door to the generated stubs."""

from __future__ import annotations

from shoal.control.cluster_pb2 import (
    ClusterDescription,
    DescribeRequest,
    DismissAnswer,
    DismissRequest,
    Failed,
    HeadMessage,
    Heartbeat,
    Join,
    LayerRange,
    Leave,
    Link,
    Linked,
    Load,
    Loaded,
    ModelFile,
    NodeDescription,
    NodeMessage,
    Peer,
    Probe,
    Probed,
    Refuse,
    Rest,
    Shutdown,
    Welcome,
)

__all__ = [
    "ClusterDescription",
    "DescribeRequest",
    "DismissAnswer",
    "DismissRequest",
    "Failed",
    "HeadMessage",
    "Heartbeat",
    "Join",
    "LayerRange",
    "Leave",
    "Link",
    "Linked",
    "Load",
    "Loaded",
    "ModelFile",
    "NodeDescription",
    "NodeMessage",
    "Peer",
    "Probe",
    "Probed",
    "Refuse",
    "Rest",
    "Shutdown",
    "Welcome",
]

SERVICE = "shoal.Cluster"
ATTEND = f"/{SERVICE}/Attend"
DESCRIBE = f"/{SERVICE}/Describe"
DISMISS = f"/{SERVICE}/Dismiss"
OPTIONS = [
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),  # machines of a cluster talk to each other directly, whatever proxy leads to the internet
]
