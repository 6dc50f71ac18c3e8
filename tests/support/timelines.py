"""Timelines for the profiler, made up."""

from __future__ import annotations

from hypothesis import strategies as st

from shoal.observed.requests import HopSpan, RequestView, StepSpan, Timeline

_seconds = st.floats(0, 0.5, allow_nan=False)


def step(
    number: int = 1, at: float = 100.0, stages: int = 2, rows: int = 1, tokens: int = 1, epoch: int = 1, own: int | None = None
) -> StepSpan:
    """Takes 18 ms with two stages: 3 before, 7 in each stage of which 4 are computing, and 1 back."""
    hops = [HopSpan(0.001, 0.0005, 0.0005, 0.004, 0.0005, 0.0005)] * stages
    return StepSpan(number, epoch, at, rows, rows if own is None else own, tokens, 0.001, 0.001, 0.001, hops, 0.001, 0.0)


def timeline(*steps: StepSpan, nodes: tuple[str, ...] = ("a", "b"), lost: int = 0, id: str = "cmpl-1") -> Timeline:
    epochs = {one.epoch: [*nodes] for one in steps}
    return Timeline(RequestView(id, 100.0, prompt_tokens=4, generated=len(steps)), epochs, [*steps], [], len(steps), lost)


def any_steps(stages: int = 2) -> st.SearchStrategy[list[StepSpan]]:
    """Steps of any lengths that overlap in any way, numbered from 1."""
    hops = st.lists(st.builds(HopSpan, *[_seconds] * 6), min_size=stages, max_size=stages)
    one = st.tuples(st.floats(1e9, 1e9 + 5), hops, st.tuples(*[_seconds] * 5), st.integers(1, 64))
    return st.lists(one, min_size=1, max_size=12).map(
        lambda found: [
            StepSpan(i, 1, at, rows, rows, min(i, rows), head[0], head[1], head[2], hops, head[3], head[4])
            for i, (at, hops, head, rows) in enumerate(sorted(found, key=lambda made: made[0]), 1)
        ]
    )
