"""A cluster as the head sees it now, in the form in which it is published. Pure."""

from __future__ import annotations

from functools import lru_cache

from shoal.address import join_host_port
from shoal.config import NodeRole
from shoal.discovery.advert import words
from shoal.discovery.topology import (
    JOINING,
    MOST_NODES,
    NodeState,
    RequestLoad,
    RouteState,
    StageSpan,
    Topology,
    as_ranges,
    published_name,
    table_of,
)
from shoal.membership.events import Joined
from shoal.membership.route_machine import RouteMachine
from shoal.node.loads import Loads
from shoal.node.roster import Roster
from shoal.placement.experts import Table

_WORDS = 120  # bytes of a model's, machine's or runtime's name
_published = lru_cache(maxsize=64)(table_of)  # a large model's takes milliseconds


def live_topology(
    head: str, model: str, pipeline: RouteMachine, roster: Roster, loads: Loads, requests: RequestLoad, now: float
) -> Topology:
    """head: of which start of a head it is the cluster. requests: the scheduler's. now: seconds, on the cluster's clock."""
    members = pipeline.members
    spans: dict[int, str] = {}
    streamed: dict[int, int] = {}
    tables: dict[int, Table] = {}
    if (placement := pipeline.placement) is not None:
        spans = {node: as_ranges(range(stage.first, stage.end)) for node, stage in zip(pipeline.route, placement.stages, strict=True)}
        streamed = {node: stage.memory for node, stage in zip(pipeline.route, placement.stages, strict=True)}
        tables = {node: plan.table for node, plan in zip(pipeline.workers, placement.workers, strict=True)}

    def state(joined: Joined, condition: str) -> NodeState:
        node, profile = joined.node, joined.profile
        member, holding = members.get(node), pipeline.holdings.get(node)
        machine, table = roster.machines[node], tables.get(node, Table())
        part = node in spans or node in tables
        link = roster.reached.get(profile.name)
        return NodeState(
            head=head,
            number=node,
            name=published_name(profile.name, node),
            role=NodeRole.EXPERTS if profile.worker else NodeRole.LAYERS,
            state=condition,
            address=words(join_host_port(joined.host, joined.tensor_port), _WORDS),
            layers=spans.get(node, ""),
            experts=_published(table),
            held=sum(map(len, table)),
            weights=streamed.get(node, 0) or (roster.held(member, pipeline) if member is not None and part else 0),
            memory=profile.memory if member is None else member.profile.memory,
            threads=machine.threads,
            machine=words(machine.machine, _WORDS),
            runtime=words(holding.runtime, _WORDS) if holding is not None and part else "",
            round_trip=round(2 * link.seconds, 6) if link is not None else 0.0,
            load=loads.of(profile.name),
        )

    states = [state(member.joined, pipeline.condition(node, now)) for node, member in members.items()]
    states += [state(joined, JOINING) for joined in roster.measuring]
    nodes = {one.name: one for one in states[:MOST_NODES]}
    route = RouteState(
        head,
        words(model, _WORDS),
        pipeline.state,
        pipeline.epoch,
        [StageSpan(published_name(members[node].name, node), layers) for node, layers in spans.items() if node in members],
        [published_name(members[node].name, node) for node in tables if node in members],
        requests,
    )
    return Topology(route, nodes, dict(pipeline.members.departed))
