"""How much of each layer's experts is best elsewhere: a search that tries few of the shares. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from shoal.placement.partition import Placement

STEPS = 16
"""A share is so many of these."""


class Lacking(enum.Enum):
    """Who has too little memory for a share."""

    STAGES = enum.auto()
    WORKERS = enum.auto()


def rank(placement: Placement) -> tuple[bool, float]:
    """What reads no disk is better, then what is faster; what is nearly as fast is alike."""
    return not placement.streams, float(f"{placement.tokens_per_second:.3g}")


def best(tried: Callable[[int], Placement | Lacking], guess: int, least: int = 0, fine: bool = True) -> Placement | None:
    """Nearly the best placement. tried: with so many steps of the experts elsewhere. guess, least: steps. fine: whether others than the guess
    are tried where it will do."""
    found: dict[int, Placement] = {}
    seen = set[int]()

    def look(step: int) -> Placement | Lacking | None:
        if not least <= step <= STEPS or step in seen:
            return None
        seen.add(step)
        if isinstance(placement := tried(step), Placement):
            found[step] = placement
        return placement

    step, low, high = max(guess, least), least, STEPS
    while low <= high:  # stages have room from some step on, workers up to some step
        placement = look(step)
        if placement is Lacking.WORKERS:
            high = step - 1
        elif placement is Lacking.STAGES or (isinstance(placement, Placement) and any(stage.memory for stage in placement.stages)):
            low = step + 1
        elif isinstance(placement, Placement) and placement.streams:
            high = step - 1
        else:
            break
        step = (low + high) // 2
    if fine:
        for step in range(low + low % 2, high + 1, 2):  # with less on the stages fewer of them may do, so there may be two peaks
            look(step)
        for step in [step for step in range(low, high + 1) if step not in seen and _promising(found, step)]:
            look(step)
    if not found:
        return None
    centre = max(found, key=lambda step: rank(found[step]))
    for step in (centre - 1, centre + 1) if fine or centre != guess else ():
        look(step)
    return found[max(sorted(found), key=lambda step: rank(found[step]))]  # among equals, with most experts on the stages


def _promising(found: Mapping[int, Placement], step: int) -> bool:
    """Whether a share may be better than those tried beside it: where another split of the layers becomes possible, or where memory ends
    and shares become better towards there."""
    before, after = found.get(step - 1), found.get(step + 1)
    if before is not None and after is not None:
        return _bounds(before) != _bounds(after)
    edge, further = (before, found.get(step - 3)) if before is not None else (after, found.get(step + 3))
    return edge is not None and (len(edge.stages) > 1 or further is None or rank(edge) > rank(further))


def _bounds(placement: Placement) -> list[tuple[str, int]]:
    """Who runs layers, and up to which."""
    return [(stage.node, stage.end) for stage in placement.stages]
