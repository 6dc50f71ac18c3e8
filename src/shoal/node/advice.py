"""What an operator should know or might do, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from shoal.observed.cluster import Advice, MachineView, RequestsView, StageView
from shoal.observed.event import ClusterEvent, EventKind

_LOST = 600.0  # seconds for which the loss of a node that has not come back is worth attention
_FULL = 0.95  # of the KV blocks
_BOUND = 1.25  # times its even share of a step, from which a stage bounds the pipeline
_WORTH = 0.02  # gain from which a change is worth a word


def advice(stages: Sequence[StageView], without: dict[str, float]) -> list[Advice]:
    """without: by node, predicted tokens per second of the cluster without it, over today's."""
    out: list[Advice] = []
    measured = [stage for stage in stages if stage.share]
    if len(measured) > 1:
        worst = max(measured, key=lambda stage: stage.share)
        if worst.share * len(measured) >= _BOUND * sum(stage.share for stage in measured):
            gain = without.get(worst.node, 1.0) - 1
            words = f"{worst.node} bounds the pipeline: {worst.share:.0%} of a step"
            out.append(Advice("bound", words + (f"; without it {gain:.0%} faster" if gain > _WORTH else ""), worst.node, max(gain, 0.0)))
    for node, times in without.items():
        if times - 1 > _WORTH and not any(one.node == node for one in out):
            out.append(Advice("better", f"without {node} the cluster is predicted to be {times - 1:.0%} faster", node, times - 1))
    return out


def attention(
    state: str,
    reason: str,
    machines: Sequence[MachineView],
    requests: RequestsView,
    queue: int,
    events: Iterable[ClusterEvent],
    now: float,
) -> list[Advice]:
    """Empty when all is well. queue: sequences that may wait. events: the latest, newest first. now: seconds since 1970."""
    return [*_of_the_model(state, reason, requests, queue), *_of_nodes(machines), *_of_events(machines, events, now)]


def _of_the_model(state: str, reason: str, requests: RequestsView, queue: int) -> Iterator[Advice]:
    if state != "serving":
        yield Advice("attention", f"no model is served: {reason or state}")
    if requests.blocks and requests.blocks_used >= _FULL * requests.blocks and requests.waiting:
        yield Advice(
            "memory", "KV blocks are used up: requests wait for others to end; give nodes more --memory, or the engine fewer slots"
        )
    if queue and requests.waiting >= 0.8 * queue:
        yield Advice("attention", f"{requests.waiting} of at most {queue} sequences wait: more are refused soon")


def _of_nodes(machines: Sequence[MachineView]) -> Iterator[Advice]:
    for machine in machines:
        if machine.state in ("failed", "suspected", "held off"):
            yield Advice("attention", f"{machine.name}: {machine.words}", machine.name)
        elif machine.slower > 1:
            yield Advice(
                "slow", f"{machine.name} runs {machine.slower:.1f} times slower than it measured: is something else running?", machine.name
            )


def _of_events(machines: Sequence[MachineView], events: Iterable[ClusterEvent], now: float) -> Iterator[Advice]:
    here, told = {machine.name for machine in machines}, set[str]()
    for event in events:
        if now - event.at > _LOST:
            return
        if event.kind is EventKind.LOST and event.node not in here and event.node not in told:
            told.add(event.node)
            yield Advice("attention", f"{event.message}; it has not come back", event.node)
