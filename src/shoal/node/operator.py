"""The answer to an operator who asks about a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoal.address import join_host_port
from shoal.control import messages as control
from shoal.membership.member import Member
from shoal.membership.members import Members
from shoal.membership.route_machine import SERVING, RouteMachine
from shoal.node.pipeline_runner import PipelineRunner
from shoal.node.roster import Roster


def described(
    name: str,
    members: Members,
    runners: Sequence[PipelineRunner],
    roster: Roster,
    events: Iterable[str],
    now: float,
    gateway_port: int,
) -> control.ClusterDescription:
    """The answer to `shoal nodes`, and to a gateway that looks for its port. now: seconds, on the cluster's clock."""
    return control.ClusterDescription(
        cluster=name,
        pipelines=[_pipeline(runner) for runner in runners],
        nodes=[_node(node, member, [runner.pipeline for runner in runners], roster, now) for node, member in members.items()],
        events=[*events],
        gateway_port=gateway_port,
    )


def _pipeline(runner: PipelineRunner) -> control.PipelineDescription:
    pipeline = runner.pipeline
    words = pipeline.moving or pipeline.why
    state = pipeline.state + (f": {words}" if words else "")
    waiting = len(runner.requests) if runner.driver is not None else 0
    if waiting and pipeline.state != SERVING:
        state += f"; {waiting} request(s) wait"
    return control.PipelineDescription(model=pipeline.id.model, replica=pipeline.id.replica, state=state, epoch=pipeline.epoch)


def _node(node: int, member: Member, pipelines: Sequence[RouteMachine], roster: Roster, now: float) -> control.NodeDescription:
    join = roster.machines[node]
    doing = {pipeline.described(node, now): None for pipeline in [p for p in pipelines if p.has_part(node)] or pipelines[:1]}
    return control.NodeDescription(
        node=node,
        name=member.name,
        address=join_host_port(member.joined.host, member.joined.tensor_port),
        machine=join.machine,
        memory=member.profile.memory,
        threads=join.threads,
        state="; ".join(doing),
        parts=[_part(node, member, pipeline, roster) for pipeline in pipelines if pipeline.has_part(node)],
        silence=now - member.heard,
    )


def _part(node: int, member: Member, pipeline: RouteMachine, roster: Roster) -> control.NodePart:
    held = roster.held(member, pipeline)
    out = control.NodePart(model=pipeline.id.model, replica=pipeline.id.replica, weight_bytes=held, runtime=pipeline.holdings[node].runtime)
    if node in pipeline.route and pipeline.placement is not None:
        stage = pipeline.placement.stages[pipeline.route.index(node)]
        out.first_layer, out.end_layer, out.weight_bytes = stage.first, stage.end, stage.memory or held
    return out
