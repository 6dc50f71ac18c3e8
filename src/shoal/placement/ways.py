"""The ways to run a Mixture-of-Experts model over some nodes, priced as a head would price them. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.placement.expectation import Expectation, TokenReads, expect, token_reads
from shoal.placement.moves import Moves
from shoal.placement.partition import Placement
from shoal.placement.profile import NodeProfile
from shoal.placement.roles import GAIN, RoleMoves


class WayKind(enum.Enum):
    PIPELINE = "layer pipeline"
    WORKERS = "stages and experts on workers"
    STREAMING = "streaming from disk"


@dataclass(frozen=True)
class Way:
    kind: WayKind
    placement: Placement
    told: Expectation
    reads: TokenReads


@dataclass(frozen=True)
class Comparison:
    ways: tuple[Way, ...]
    """The fastest for many streams first; each placement once."""
    chosen: Way
    why: str

    def best(self, kind: WayKind) -> Way | None:
        return next((way for way in self.ways if way.kind is kind), None)


def compared(moves: Moves, nodes: Sequence[NodeProfile]) -> Comparison:
    """Raises CapacityError if none of them fits."""
    roles, here = RoleMoves(moves), {node.name: node for node in nodes}

    def way(placement: Placement) -> Way:
        kind = WayKind.WORKERS if placement.workers else WayKind.STREAMING if placement.streams else WayKind.PIPELINE
        return Way(
            kind, placement, expect(placement, here, moves.model, moves.links, moves.demand), token_reads(placement, here, moves.model)
        )

    chosen = way(roles.first(nodes, {}))
    found = {_parts(placement): way(placement) for placement in roles.every(nodes)}
    found[_parts(chosen.placement)] = chosen
    ways = tuple(sorted(found.values(), key=lambda one: -one.told.together))
    return Comparison(ways, chosen, _why(ways, chosen))


def _parts(placement: Placement) -> tuple[object, ...]:
    """Who runs which layers, and who holds experts."""
    return (*((stage.node, stage.first, stage.end) for stage in placement.stages), *(plan.node for plan in placement.workers))


def _why(ways: Sequence[Way], chosen: Way) -> str:
    others = [way for way in ways if bool(way.placement.workers) != bool(chosen.placement.workers)]
    if not others:
        return (
            "no other way fits in memory"
            if chosen.placement.workers
            else "experts on workers do not fit in memory, or there is no node for them"
        )
    gain = chosen.told.together / others[0].told.together
    if chosen.placement.workers:
        where = "; all weights are in memory" if others[0].placement.streams and not chosen.placement.streams else ""
        return f"it is {gain:.2f} times as fast as the {others[0].kind.value}{where}"
    words = f"with experts on workers it is {1 / gain:.2f} times as fast"
    return words + (f"; roles change from {GAIN:g} times on" if gain < 1 else "")
