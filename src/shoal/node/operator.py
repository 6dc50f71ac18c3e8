"""The answer to an operator who asks about a cluster."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.address import join_host_port
from shoal.control import messages as control
from shoal.membership.route_machine import SERVING, RouteMachine
from shoal.node.roster import Roster


def described(
    name: str, model: str, pipeline: RouteMachine, roster: Roster, waiting: int, events: Iterable[str], now: float
) -> control.ClusterDescription:
    """The answer to `shoal nodes`. waiting: requests that have not ended. now: seconds, on the cluster's clock."""
    words = pipeline.moving or pipeline.why
    state = pipeline.state + (f": {words}" if words else "")
    out = control.ClusterDescription(cluster=name, model=model, state=state, epoch=pipeline.epoch, events=list(events))
    if waiting and pipeline.state != SERVING:
        out.state += f"; {waiting} request(s) wait"
    for node, member in pipeline.members.items():
        join, holding = roster.machines[node], pipeline.holdings[node]
        one = control.NodeDescription(
            node=node,
            name=member.name,
            address=join_host_port(member.joined.host, member.joined.tensor_port),
            machine=join.machine,
            memory=member.profile.memory,
            threads=join.threads,
            state=pipeline.described(node, now),
            silence=now - member.heard,
        )
        if node in pipeline.route and pipeline.placement is not None:
            stage = pipeline.placement.stages[pipeline.route.index(node)]
            one.first_layer, one.end_layer = stage.first, stage.end
            one.weight_bytes, one.runtime = stage.memory or roster.held(member, holding), holding.runtime
        elif node in pipeline.workers:
            one.weight_bytes, one.runtime = roster.held(member, holding), holding.runtime
        out.nodes.append(one)
    return out
