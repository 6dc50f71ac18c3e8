"""A cluster as operators see it now. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from shoal.discovery.topology import NodeState, Topology
from shoal.membership.route_machine import RouteMachine
from shoal.node.roster import Roster
from shoal.observed.cluster import MachineView, Progress, StageView
from shoal.pipeline.timing import StepTiming


def machine_view(state: NodeState, pipeline: RouteMachine, roster: Roster, now: float) -> MachineView:
    """now: seconds, on the cluster's clock."""
    join, member = roster.machines[state.number], pipeline.members.get(state.number)
    first, end = _span(state.layers)
    link, doing = roster.reached.get(join.name), roster.activity(join.name)
    return MachineView(
        name=join.name,
        number=state.number,
        role=state.role,
        state=state.state,
        words=pipeline.described(state.number, now) if member is not None else "its link is being measured",
        address=state.address,
        machine=state.machine,
        threads=state.threads,
        silence=now - member.heard if member is not None else 0.0,
        first_layer=first,
        end_layer=end,
        experts=state.held,
        weights=state.weights,
        memory=state.memory,
        resident=state.load.resident,
        runtime=state.runtime,
        bytes_per_second=join.bytes_per_second,
        flops=join.flops,
        disk=join.disk,
        round_trip=state.round_trip,
        link_bytes_per_second=link.bytes_per_second if link is not None else 0.0,
        busy=state.load.busy,
        slower=member.slower if member is not None else 1.0,
        queue=state.load.queue,
        progress=_progress(join.name, doing, pipeline, _held(join.name, pipeline, roster)) if state.state == "loading" else None,
        computed=roster.computed(join.name, pipeline.id),
    )


def _held(name: str, pipeline: RouteMachine, roster: Roster) -> int:
    """Bytes of weights."""
    report = roster.report(name, pipeline.id)
    return 0 if report is None else report.weights


def _progress(name: str, doing: str, pipeline: RouteMachine, held: int) -> Progress:
    """held: bytes of weights."""
    placement = pipeline.coming.placement if pipeline.coming is not None else None
    total = next((stage.held_bytes for stage in placement.stages if stage.node == name), 0) if placement is not None else 0
    return Progress(doing or "loads its layers", min(held, total), total)


def _span(layers: str) -> tuple[int, int]:
    """'0-14' → (0, 15); '' → (0, 0)."""
    if not layers:
        return 0, 0
    first, _, last = layers.partition("-")
    return int(first), int(last or first) + 1


def stage_views(
    pipeline: RouteMachine, topology: Topology, steps: Sequence[StepTiming], hops: Sequence[Sequence[float]]
) -> list[StageView]:
    """steps: the latest that sampled. hops: the latest seconds of each hop."""
    placement = pipeline.placement
    if placement is None:
        return []
    count = len(placement.stages)
    steps = [step for step in steps if len(step.traces) == count]
    flight = median(step.flight - sum(trace.wait for trace in step.traces) for step in steps) if steps else 0.0
    out: list[StageView] = []
    for i, stage in enumerate(placement.stages):
        traces = [step.traces[i] for step in steps]
        busy = median(t.prepare + t.compute + t.sample + t.encode for t in traces) if traces else 0.0
        out.append(
            StageView(
                stage.node,
                stage.first,
                stage.end,
                wait=median(t.wait for t in traces) if traces else 0.0,
                compute=median(t.compute for t in traces) if traces else 0.0,
                sample=median(t.sample for t in traces) if traces else 0.0,
                share=min(busy / flight, 1.0) if flight > 0 else 0.0,
                predicted=stage.seconds,
                hop=median(hops[i]) if len(hops) == count + 1 and hops[i] else 0.0,
            )
        )
    return out


def measured(counts: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Rows of each expert, by layer, of layers of which any were counted."""
    return {layer: [*rows] for layer, rows in counts.items() if any(rows)}
