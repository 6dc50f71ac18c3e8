"""The answer to an operator who asks about a cluster."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.address import join_host_port
from shoal.control import messages as control
from shoal.membership.state import SERVING, Cluster
from shoal.node.roster import Roster


def described(
    name: str, model: str, cluster: Cluster, roster: Roster, waiting: int, events: Iterable[str], now: float
) -> control.ClusterDescription:
    """The answer to `shoal nodes`. waiting: requests that have not ended. now: seconds, on the cluster's clock."""
    words = cluster.moving or cluster.why
    state = cluster.state + (f": {words}" if words else "")
    out = control.ClusterDescription(cluster=name, model=model, state=state, epoch=cluster.epoch, events=list(events))
    if waiting and cluster.state != SERVING:
        out.state += f"; {waiting} request(s) wait"
    for node, member in cluster.members.items():
        join = roster.machines[node]
        one = control.NodeDescription(
            node=node,
            name=member.name,
            address=join_host_port(member.joined.host, member.joined.tensor_port),
            machine=join.machine,
            memory=member.profile.memory,
            threads=join.threads,
            state=cluster.described(node, now),
            silence=now - member.heard,
        )
        if node in cluster.route and cluster.placement is not None:
            stage = cluster.placement.stages[cluster.route.index(node)]
            one.first_layer, one.end_layer = stage.first, stage.end
            one.weight_bytes, one.runtime = stage.memory or roster.held(member), member.runtime
        elif node in cluster.workers:
            one.weight_bytes, one.runtime = roster.held(member), member.runtime
        out.nodes.append(one)
    return out
