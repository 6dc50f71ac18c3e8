"""What a model's layers cost: the bytes that are held and the bytes that a step reads, which differ if there are experts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

_RARE = 1e-6
"""Of an expert: less is not worth a line."""


@dataclass(frozen=True)
class Matrices:
    """Matrices that are multiplied together or not at all."""

    size: int
    """Bytes, as executed."""
    parameters: int

    def __add__(self, other: Matrices) -> Matrices:
        return Matrices(self.size + other.size, self.parameters + other.parameters)

    @property
    def bits(self) -> float:
        """Of a parameter, on average, with its share of the scales."""
        return 8 * self.size / self.parameters if self.parameters else 16.0

    def flops(self, rows: float) -> int:
        """Operations of the products with so many rows."""
        return round(2 * rows * self.parameters)


@dataclass(frozen=True)
class ExpertsCost:
    """The routed experts of a layer. All have the same size."""

    count: int
    chosen: float
    """For each row, by the router; of a part of the experts, on average."""
    each: Matrices
    popularity: tuple[float, ...] = field(default=(), repr=False)
    """[count] of how probable it is that a row chooses each expert, as measured; they sum to `chosen`. Empty: all alike."""
    hits: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    """(share, rate), both rising: of the experts that one row chooses, the rate that was measured to be in a cache with so much of
    them. Routing repeats itself, so it is above the share. Empty: the cache holds the popular ones."""

    def __post_init__(self) -> None:
        if not 0 < self.chosen <= self.count:
            raise ValueError(f"{self.chosen} of {self.count} experts cannot be chosen")
        if self.popularity and (
            len(self.popularity) != self.count
            or not all(0 <= p <= 1 for p in self.popularity)
            or abs(sum(self.popularity) - self.chosen) > 1e-3 * self.chosen
        ):
            raise ValueError(f"the popularity of {self.count} experts is {self.count} probabilities with a sum of {self.chosen}")
        if any(not 0 <= x <= 1 for point in self.hits for x in point) or any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(self.hits)):
            raise ValueError("hits are pairs of a share and a rate between 0 and 1, and both rise")

    def hit_rate(self, share: float) -> float:
        """By `hits`, straight between its points and those of no cache and of a whole one."""
        points = ((-1e-9, 0.0), *self.hits, (1 + 1e-9, 1.0))
        for (a, low), (b, high) in pairwise(points):
            if share <= b:
                return low + (high - low) * (share - a) / (b - a)
        return 1.0

    def touched(self, rows: float) -> float:
        """The expected number of different experts that so many independent rows choose. Without `popularity` every expert is as
        likely as any other; routing that prefers some touches fewer."""
        return self.missed(rows, 0)

    def spread(self, rows: int) -> dict[int, float]:
        """The expected number of experts that get so many of the rows, by their number: binomial, for each expert. The mean of its rows hides
        that most experts of a small step get one, and some get several."""
        out: dict[int, float] = {}
        same = Counter(self.popularity) if self.popularity else {self.chosen / self.count: self.count}
        for p, experts in same.items():
            if p >= 1:
                out[rows] = out.get(rows, 0.0) + experts
                continue
            probability = (1 - p) ** rows
            for n in range(rows):
                probability *= (rows - n) / (n + 1) * p / (1 - p)
                out[n + 1] = out.get(n + 1, 0.0) + experts * probability
        return {n: experts for n, experts in out.items() if experts > _RARE}

    def missed(self, rows: float, held: float) -> float:
        """Those of `touched` that are not among the `held` most popular experts (a fraction counts as part of the next)."""
        if not self.popularity:
            return max(self.count - held, 0) * (1 - (1 - self.chosen / self.count) ** rows)
        whole = int(held)
        rarer = sorted(self.popularity, reverse=True)[whole:]
        first = (1 - (1 - rarer[0]) ** rows) * (held - whole) if rarer else 0.0
        return max(sum(1 - (1 - p) ** rows for p in rarer) - first, 0.0)


@dataclass(frozen=True)
class LayerCost:
    always: Matrices
    """What every row is multiplied by: of the attention, and a dense feed-forward part or the router and the shared experts."""
    kv_bytes: int
    """Of one token's keys and values."""
    attention: int
    """Operations of one row per token that it attends to."""
    window: int = 0
    """Most tokens that a row attends to; 0: all."""
    experts: ExpertsCost | None = None
    sharing: int = 1
    """Query heads of one head of keys."""

    @property
    def held_bytes(self) -> int:
        return self.always.size + (self.experts.count * self.experts.each.size if self.experts else 0)

    def read_bytes(self, rows: int) -> float:
        """Bytes of weights that a step with so many rows reads; with experts, the expected ones."""
        return self.always.size + (self.experts.touched(rows) * self.experts.each.size if self.experts else 0)

    def flops(self, rows: int) -> int:
        """Operations of the products with so many rows."""
        return self.always.flops(rows) + (self.experts.each.flops(rows * self.experts.chosen) if self.experts else 0)

    def kv_read(self, context: int) -> int:
        """Bytes of keys and values that one row reads, as the last of so many tokens."""
        return self.kv_bytes * (min(context, self.window) if self.window else context)


@dataclass(frozen=True)
class ModelCost:
    """The embedding costs nothing: rows are picked from the file on the first stage."""

    layers: tuple[LayerCost, ...]
    head: Matrices
    """On the last stage."""
    activation_bytes: int
    """Of one row, between two stages."""
    workspace: int
    """Bytes that a stage needs besides weights and KV."""
    last_bytes: int = 0
    """Bytes that only the last stage needs besides those."""
    row_bytes: int = 0
    """Bytes of a step's buffers for each of its rows: what `workspace` holds for the rows that it was made for."""
    kv_element: float = 2.0
    """Bytes of one number of the keys and values, as the layers' `kv_bytes` count them."""

    @property
    def held_bytes(self) -> int:
        """Of all weights."""
        return sum(layer.held_bytes for layer in self.layers) + self.head.size

    def read_bytes(self, first: int, end: int, rows: int) -> float:
        """Bytes of weights that a step with so many rows reads on the stage with these layers."""
        return sum(layer.read_bytes(rows) for layer in self.layers[first:end]) + (self.head.size if end == len(self.layers) else 0)
