"""A cluster as the head sees it now, in the form in which it is published. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from shoal.address import join_host_port
from shoal.config import NodeRole
from shoal.discovery.advert import words
from shoal.discovery.topology import (
    JOINING,
    MOST_NODES,
    MOST_PIPELINES,
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
from shoal.membership.holding import Holding
from shoal.membership.member import Member
from shoal.membership.members import Members
from shoal.membership.route_machine import WAITING, RouteMachine
from shoal.membership.words import condition
from shoal.node.loads import Loads
from shoal.node.roster import Roster
from shoal.placement.experts import Table

_WORDS = 120  # bytes of a model's, machine's or runtime's name
_published = lru_cache(maxsize=64)(table_of)  # a large model's takes milliseconds


def without_models(head: str, members: Members, roster: Roster, loads: Loads, now: float) -> Topology:
    """Of a head that has no model. head, now: as below."""
    states = [
        _state(head, member.joined, condition(member, Holding(), "", members.holdoff, now), roster, loads) for member in members.values()
    ]
    nodes = _first(states + [_state(head, joined, JOINING, roster, loads) for joined in roster.measuring])
    return Topology(RouteState(head, "", WAITING), nodes, dict(members.departed))


def live_topology(head: str, pipeline: RouteMachine, roster: Roster, loads: Loads, requests: RequestLoad, now: float) -> Topology:
    """As one pipeline has it.

    head: of which start of a head it is the cluster. requests: the scheduler's. now: seconds, on the cluster's clock.
    """
    members = pipeline.members
    spans: dict[int, str] = {}
    streamed: dict[int, int] = {}
    tables: dict[int, Table] = {}
    if (placement := pipeline.placement) is not None:
        spans = {node: as_ranges(range(stage.first, stage.end)) for node, stage in zip(pipeline.route, placement.stages, strict=True)}
        streamed = {node: stage.memory for node, stage in zip(pipeline.route, placement.stages, strict=True)}
        tables = {node: plan.table for node, plan in zip(pipeline.workers, placement.workers, strict=True)}

    def state(node: int, member: Member) -> NodeState:
        there = _state(head, member.joined, pipeline.condition(node, now), roster, loads)
        there = msgspec.structs.replace(there, memory=member.profile.memory)
        if node not in spans and node not in tables:
            return there
        table = tables.get(node, Table())
        return msgspec.structs.replace(
            there,
            layers=spans.get(node, ""),
            experts=_published(table),
            held=sum(map(len, table)),
            weights=streamed.get(node, 0) or roster.held(member, pipeline),
            runtime=words(pipeline.holdings[node].runtime, _WORDS),
        )

    states = [state(node, member) for node, member in members.items()]
    nodes = _first(states + [_state(head, joined, JOINING, roster, loads) for joined in roster.measuring])
    route = RouteState(
        head,
        words(pipeline.id.model, _WORDS),
        pipeline.state,
        pipeline.epoch,
        [StageSpan(published_name(members[node].name, node), layers) for node, layers in spans.items() if node in members],
        [published_name(members[node].name, node) for node in tables if node in members],
        requests,
        pipeline.id.replica,
    )
    return Topology(route, nodes, dict(pipeline.members.departed))


def _state(head: str, joined: Joined, condition: str, roster: Roster, loads: Loads) -> NodeState:
    """Of a node, without what it has of models."""
    node, profile = joined.node, joined.profile
    machine, link = roster.machines[node], roster.reached.get(profile.name)
    return NodeState(
        head=head,
        number=node,
        name=published_name(profile.name, node),
        role=NodeRole.EXPERTS if profile.worker else NodeRole.LAYERS,
        state=condition,
        address=words(join_host_port(joined.host, joined.tensor_port), _WORDS),
        memory=profile.memory,
        threads=machine.threads,
        machine=words(machine.machine, _WORDS),
        round_trip=round(2 * link.seconds, 6) if link is not None else 0.0,
        load=loads.of(profile.name),
    )


def _first(states: Sequence[NodeState]) -> dict[str, NodeState]:
    """By name, as many as may be published."""
    return {one.name: one for one in states[:MOST_NODES]}


def merged(seen: Sequence[Topology]) -> Topology:
    """The cluster as all its pipelines have it. seen: as each of them does, that of the default model first; at least one."""
    first = seen[0]
    nodes = {name: _of_all(name, [one for one in seen if name in one.nodes]) for name in first.nodes}
    return Topology(first.route, nodes, first.departed, [one.route for one in seen[1 : MOST_PIPELINES + 1]])


def _of_all(name: str, seen: Sequence[Topology]) -> NodeState:
    """A node. It is told as the first pipeline has it in which it has a part."""
    parts = [one for one in seen if one.nodes[name].layers or one.nodes[name].held]
    if len(parts) < 2:
        return (parts or seen)[0].nodes[name]
    states = [one.nodes[name] for one in parts]
    further = {one.route.pipeline: state.layers for one, state in zip(parts[1 : MOST_PIPELINES + 1], states[1:], strict=False)}
    return msgspec.structs.replace(states[0], weights=sum(state.weights for state in states), further=further)
