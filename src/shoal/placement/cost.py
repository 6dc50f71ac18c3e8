"""What a model's layers cost: the bytes that are held and the bytes that a step reads, which differ if there are experts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Matrices:
    """Matrices that are multiplied together or not at all."""

    size: int
    """Bytes, as executed."""
    parameters: int

    def __add__(self, other: Matrices) -> Matrices:
        return Matrices(self.size + other.size, self.parameters + other.parameters)

    def flops(self, rows: int) -> int:
        """Operations of the products with so many rows."""
        return 2 * rows * self.parameters


@dataclass(frozen=True)
class ExpertsCost:
    """The routed experts of a layer. All have the same size."""

    count: int
    chosen: int
    """For each row, by the router."""
    each: Matrices

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.count:
            raise ValueError(f"{self.chosen} of {self.count} experts cannot be chosen")

    def touched(self, rows: int) -> float:
        """The expected number of different experts that so many rows choose, if every expert is as likely as any other and the
        rows are independent. Routing that prefers some experts touches fewer."""
        return self.count * (1 - (1 - self.chosen / self.count) ** rows)


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

    @property
    def held_bytes(self) -> int:
        """Of all weights."""
        return sum(layer.held_bytes for layer in self.layers) + self.head.size

    def read_bytes(self, first: int, end: int, rows: int) -> float:
        """Bytes of weights that a step with so many rows reads on the stage with these layers."""
        return sum(layer.read_bytes(rows) for layer in self.layers[first:end]) + (self.head.size if end == len(self.layers) else 0)
