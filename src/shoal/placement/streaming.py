"""The bytes of a model's weights that are not held where they are needed, and so are read again for every step.

Held bytes are counted from the most useful on: first the matrices of every row, of all layers alike, and the head; then of the
experts, in every layer the same share, the popular ones first.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise

from shoal.placement.cost import ExpertsCost, LayerCost, ModelCost

_BUFFERS = 2
"""Of a layer: one is read into while the other is computed with."""


class StreamedWeights:
    def __init__(self, model: ModelCost) -> None:
        self.groups: list[tuple[LayerCost, int]] = list(Counter(model.layers).items())
        self.head = model.head
        self.always = sum(layer.always.size * count for layer, count in self.groups) + model.head.size
        self.total = model.held_bytes
        self._popularity = [sorted(layer.experts.popularity) if layer.experts else [] for layer, _ in self.groups]
        self._rarer: dict[tuple[int, int], list[float]] = {}

    def shares(self, held: float) -> tuple[float, float]:
        """Of what every row needs, and of the experts, that so many held bytes are."""
        experts = self.total - self.always
        always = min(held / self.always, 1.0) if self.always else 1.0
        return always, min(max(held - self.always, 0.0) / experts, 1.0) if experts else 1.0

    def missed_experts(self, group: int, rows: int, share: float) -> float:
        """The expected number of experts of a layer that so many rows choose and that are not among the held share.

        What was measured of one row's hits counts the less, the more of all experts the rows choose: if they choose all, it is the
        held ones alone that are hit.
        """
        experts = self.groups[group][0].experts
        if experts is None or share >= 1:
            return 0.0
        missed = self._unpopular(group, experts, rows, share)
        if not experts.hits or not share:
            return missed
        touched = self._unpopular(group, experts, rows, 0)
        all_of_them = touched / experts.count
        return min(missed, all_of_them * missed + (1 - all_of_them) * touched * (1 - experts.hit_rate(share)))

    def chooses_nearly_all(self, rows: int) -> bool:
        """Whether so many rows choose 99 % of the experts of every layer, so that it is no use to wait for the router."""
        return all(
            self.missed_experts(i, rows, 0) >= 0.99 * layer.experts.count for i, (layer, _) in enumerate(self.groups) if layer.experts
        )

    def _unpopular(self, group: int, experts: ExpertsCost, rows: int, share: float) -> float:
        """Those that are chosen and not among the most popular."""
        if not experts.popularity:
            return experts.missed(rows, share * experts.count)
        rarer = self._rarer.get((group, rows))
        if rarer is None:
            touched = (1 - (1 - p) ** rows for p in self._popularity[group])
            rarer = self._rarer[group, rows] = [0.0, *accumulate(touched)][::-1]
        at = share * experts.count
        whole = min(int(at), experts.count - 1)
        return rarer[whole] + (at - whole) * (rarer[whole + 1] - rarer[whole])

    def missed(self, rows: int, held: float) -> float:
        """Expected bytes that a step with so many rows needs and that are not held."""
        always, share = self.shares(held)
        experts = sum(
            self.missed_experts(i, rows, share) * layer.experts.each.size * count
            for i, (layer, count) in enumerate(self.groups)
            if layer.experts is not None
        )
        return (1 - always) * self.always + experts

    def _parts(self, held: float, rows: int | None) -> list[float]:
        always, share = self.shares(held)
        out = [(1 - always) * self.head.size]
        for i, (layer, _) in enumerate(self.groups):
            experts = 0.0
            if layer.experts is not None:
                streamed = (1 - share) * layer.experts.count if rows is None else self.missed_experts(i, rows, 0)
                experts = streamed * layer.experts.each.size
            out.append((1 - always) * layer.always.size + experts)
        return [_BUFFERS * part for part in out]

    def buffers(self, held: float, rows: int | None) -> float:
        """Bytes of the buffers that streamed weights are read into. rows: of a step, if only the experts that it chooses are read;
        None if all of a layer is."""
        return max(self._parts(held, rows)) if held < self.total else 0.0

    def most(self, room: float, above: float, rows: int | None, buffered: bool = True) -> float:
        """The most bytes that fit into the room of a tier beside the buffers for the rest.

        above: bytes that are held in faster tiers. rows: as for `buffers`. buffered: whether a rest is read through this tier.
        Negative: the bytes that are missing for none to be held.
        """
        rest = self.total - above
        if rest <= room:
            return rest
        if not buffered:
            return min(room, rest)
        stops = sorted({0.0, max(self.always - above, 0.0), rest})
        ends = [[y + part for part in self._parts(above + y, rows)] for y in stops]
        for (y, z), (left, right) in reversed(list(zip(pairwise(stops), pairwise(ends), strict=True))):
            if max(left) <= room:  # every part that does not fit at z crosses the room's edge once in between
                crossings = [y + (z - y) * (room - p) / (q - p) for p, q in zip(left, right, strict=True) if q > room]
                return min(crossings, default=z)
        return room - min(max(parts) for parts in ends)
