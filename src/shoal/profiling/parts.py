"""What the stages' computing is made of: what the nodes counted meanwhile, or what the costs of the model say."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shoal.observed.cluster import ClusterView, MachineView
from shoal.observed.computing import ComputeParts
from shoal.profiling.profile import StageParts, steps_by_kind
from shoal.profiling.slices import Run

Estimates = Mapping[tuple[str, str], Mapping[str, float]]
"""Seconds of the parts, in any unit, by node and kind of steps."""


def stage_parts(run: Run, before: ClusterView, after: ClusterView, estimates: Estimates) -> list[StageParts]:
    """before, after: the cluster when the run began and ended. Nodes' counts are as old as their last heartbeats, so they are shares, and the
    run's steps say of how much. Estimated is what a node did not count."""
    counted = _counted(before, after)
    out: list[StageParts] = []
    for i, node in enumerate(run.nodes):
        for kind, steps in steps_by_kind(run):
            seconds = sum(step.stages[i].compute for step in steps)
            found = counted.get((node, kind))
            parts = found or estimates.get((node, kind), {})
            if seconds and (whole := sum(parts.values())):
                scaled = {part: each * seconds / whole for part, each in parts.items() if each}
                out.append(StageParts(node, kind, len(steps), seconds, found is not None, scaled))
    return out


def _counted(before: ClusterView, after: ClusterView) -> dict[tuple[str, str], dict[str, float]]:
    """Without nodes that joined or began with another model meanwhile, and without kinds of steps of which there were none."""
    then = {machine.number: machine for machine in before.machines}
    out: dict[tuple[str, str], dict[str, float]] = {}
    for machine in after.machines:
        for kind, since in _since(then.get(machine.number), machine):
            if min(since.seconds) >= 0 and sum(since.seconds) > 0:
                out[machine.name, kind] = {name.replace("_", "-"): each for name, each in msgspec.structs.asdict(since).items()}
    return out


def _since(before: MachineView | None, after: MachineView) -> list[tuple[str, ComputeParts]]:
    if before is None or before.computed is None or after.computed is None:
        return []
    was, now = before.computed, after.computed
    return [("decode", now.decoding - was.decoding), ("prompt", now.prompts - was.prompts)]
