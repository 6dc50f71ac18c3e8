"""The description of a model: its sizes, and a list of layers that may differ. `models/families` reads it from files.

A part of a layer says which matrices and vectors it has, by their names in `models/weights.py`; a bias is `<matrix>.bias`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from shoal.errors import CorruptModel, UnsupportedModel

Shapes = dict[str, tuple[int, int]]
"""[n, k] of matrices: n outputs of k inputs."""
_MOST_KEY, _MOST_VALUE = 1024, 512
_MOST_EXPERTS, _MOST_EXPERTS_IN_ALL = 1024, 1 << 16  # more than any model has: a damaged file must not make this process work by its number


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding. `kind` names the scaling; its fields have the meanings of transformers' modeling_rope_utils."""

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3", "yarn", "factors"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] = ()
    """Divisors of the frequencies, one per pair: GGUF's rope_freqs.weight, in which it stores llama3, or one of longrope's lists."""
    long_factors: tuple[float, ...] = ()
    """Those that replace the factors where more than `original_context` is served; none: they never do."""
    dims: int = 0
    """Values of a head that are rotated, its first ones; 0: all."""

    def check(self, head_dim: int, where: object) -> None:
        """Refuses numbers that give no frequencies. Raises CorruptModel."""
        numbers = [
            self.theta,
            self.factor,
            self.low_freq_factor,
            self.high_freq_factor,
            self.beta_fast,
            self.beta_slow,
            *self.factors,
            *self.long_factors,
        ]
        if self.attention_factor is not None:
            numbers.append(self.attention_factor)
        if not all(math.isfinite(n) and n > 0 for n in numbers) or self.theta <= 1:
            raise CorruptModel(where, "the rotary embedding has a number that cannot be")
        if self.kind in ("llama3", "yarn") and (self.original_context < 1 or self.low_freq_factor == self.high_freq_factor):
            raise CorruptModel(where, "the rotary embedding's scaling does not hold together")
        rotated = self.rotated(head_dim)
        if rotated < 2 or rotated % 2 or rotated > head_dim:
            raise CorruptModel(where, f"{rotated} of a head's {head_dim} values cannot be rotated")
        if self.kind == "factors" and {len(self.factors), len(self.long_factors or self.factors)} != {rotated // 2}:
            raise CorruptModel(where, f"{len(self.factors)} rotary factors do not fit {rotated} rotated values")

    def rotated(self, head_dim: int) -> int:
        return self.dims or head_dim


class GroupedQuery(msgspec.Struct, frozen=True):
    """Grouped-query attention."""

    q_heads: int
    kv_heads: int
    head_dim: int
    """Of queries and keys."""
    rope: Rope | None
    """None: positions are not encoded."""
    window: int = 0
    """Tokens that a query sees, including itself; 0: all."""
    qk_norm: Literal["", "head", "full"] = ""
    """Whether queries and keys are normalised before rotation: each head, or all heads as one vector."""
    value_dim: int = 0
    """Width of a head's values; 0: as the keys."""
    scale: float = 0.0
    """Of the products of queries and keys; 0: one over the root of head_dim."""
    cap: float = 0.0
    """Scores become cap * tanh(score / cap); 0: they stay."""
    clip: float = 0.0
    """Bounds of queries, keys and values; 0: none."""
    sinks: bool = False
    """Whether each head has a score without a value, which takes its share of the weights."""

    @property
    def values(self) -> int:
        """Width of a head's values."""
        return self.value_dim or self.head_dim

    @property
    def q_width(self) -> int:
        return self.q_heads * self.head_dim

    @property
    def scaling(self) -> float:
        return self.scale or self.head_dim**-0.5

    @property
    def kv_vectors(self) -> tuple[int, ...]:
        """Widths of what is kept of a token: keys and values, in turns."""
        return (self.head_dim, self.values) * self.kv_heads

    @property
    def kv_values(self) -> int:
        """Numbers that are kept of a token."""
        return sum(self.kv_vectors)

    @property
    def operations(self) -> int:
        """Of one row, per token that it attends to."""
        return 2 * self.q_heads * (self.head_dim + self.values)

    def matrices(self, hidden: int) -> Shapes:
        return {
            "q": (self.q_width, hidden),
            "k": (self.kv_heads * self.head_dim, hidden),
            "v": (self.kv_heads * self.values, hidden),
            "o": (hidden, self.q_heads * self.values),
        }

    def vectors(self) -> dict[str, int]:
        """Lengths of those that must be there."""
        widths = (self.q_width, self.kv_heads * self.head_dim) if self.qk_norm == "full" else (self.head_dim, self.head_dim)
        norms = {"q_norm": widths[0], "k_norm": widths[1]} if self.qk_norm else {}
        return {**norms, "sinks": self.q_heads} if self.sinks else norms

    def check(self, where: object) -> None:
        """Raises CorruptModel, UnsupportedModel."""
        numbers = (self.scaling, self.cap, self.clip) if self.head_dim > 0 else ()
        if min(self.q_heads, self.kv_heads, self.head_dim) < 1 or self.value_dim < 0 or self.window < 0:
            raise CorruptModel(where, "a size of the attention is missing or not positive")
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise CorruptModel(where, "a factor of the attention cannot be")
        if self.rope is not None:
            self.rope.check(self.head_dim, where)
        if self.q_heads % self.kv_heads:
            raise CorruptModel(where, f"{self.q_heads} query heads do not divide over {self.kv_heads} KV heads")
        _check_widths(where, keys=self.head_dim, values=self.values)


class Latent(msgspec.Struct, frozen=True):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): a token's keys and values are one vector and one rotated key."""

    q_heads: int
    kv_rank: int
    """Width of the vector that is kept of a token."""
    nope_dim: int
    """Of a head's queries and keys: the values that are not rotated."""
    rope_dim: int
    value_dim: int
    rope: Rope
    scale: float
    q_rank: int = 0
    """Width of the vector that queries are made from; 0: from the hidden states."""
    window: int = 0

    @property
    def kv_vectors(self) -> tuple[int, ...]:
        """Widths of what is kept of a token: keys and values, in turns."""
        return self.kv_rank + self.rope_dim, self.kv_rank

    @property
    def kv_values(self) -> int:
        """Numbers that are kept of a token."""
        return sum(self.kv_vectors)

    @property
    def operations(self) -> int:
        """Of one row, per token that it attends to."""
        return 2 * self.q_heads * self.kv_values

    def matrices(self, hidden: int) -> Shapes:
        first: Shapes = {"q_a": (self.q_rank, hidden)} if self.q_rank else {}
        return {
            **first,
            "q": (self.q_heads * (self.nope_dim + self.rope_dim), self.q_rank or hidden),
            "kv_a": (self.kv_rank + self.rope_dim, hidden),
            "k_b": (self.q_heads * self.kv_rank, self.nope_dim),
            "v_b": (self.q_heads * self.value_dim, self.kv_rank),
            "o": (hidden, self.q_heads * self.value_dim),
        }

    def vectors(self) -> dict[str, int]:
        return {**({"q_a_norm": self.q_rank} if self.q_rank else {}), "kv_a_norm": self.kv_rank}

    def check(self, where: object) -> None:
        """Raises CorruptModel, UnsupportedModel."""
        if min(self.q_heads, self.kv_rank, self.nope_dim, self.rope_dim, self.value_dim) < 1 or self.q_rank < 0:
            raise CorruptModel(where, "a size of the attention is missing or not positive")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise CorruptModel(where, "a factor of the attention cannot be")
        self.rope.check(self.rope_dim, where)
        if self.window:
            raise UnsupportedModel(f"{where}: latent attention with a window is not supported")
        for width in (self.nope_dim, self.rope_dim):
            _check_widths(where, keys=width, values=self.value_dim)
        if self.q_rank % 16:
            raise UnsupportedModel(f"{where}: the width of what queries are made from ({self.q_rank}) must be a multiple of 16")
        if self.kv_rank % 32 or self.kv_rank > _MOST_VALUE:
            raise UnsupportedModel(f"{where}: the latent vectors' width ({self.kv_rank}) must be a multiple of 32, at most {_MOST_VALUE}")


def _check_widths(where: object, keys: int, values: int) -> None:
    if keys % 16 or keys > _MOST_KEY or values % 16 or values > _MOST_VALUE:
        raise UnsupportedModel(
            f"{where}: the heads' width ({keys}, values {values}) must be a multiple of 16, at most {_MOST_KEY}, of values {_MOST_VALUE}"
        )


Activation = Literal["silu", "gelu", "clamped"]
"""What a gated MLP does to its gate: SiLU, GELU by tanh, or gpt-oss's: both are clamped at 7, and (up + 1) * gate * sigmoid(1.702 * gate)."""


class Dense(msgspec.Struct, frozen=True):
    """A gated MLP: down(activation(gate(x)) * up(x))."""

    width: int
    activation: Activation = "silu"

    def matrices(self, hidden: int) -> Shapes:
        return {"gate": (self.width, hidden), "up": (self.width, hidden), "down": (hidden, self.width)}

    def vectors(self) -> dict[str, int]:
        return {}

    def check(self, where: object) -> None:
        """Raises CorruptModel, UnsupportedModel."""
        if self.width < 1:
            raise CorruptModel(where, "the MLP's width is missing or not positive")
        if self.width % 16:
            raise UnsupportedModel(f"{where}: the MLP's width ({self.width}) must be a multiple of 16")


class Routing(msgspec.Struct, frozen=True):
    """How experts are chosen and weighted: scores; plus the bias, for the choice alone; groups; the best; their weights."""

    chosen: int
    scores: Literal["softmax", "sigmoid", "softmax of the chosen"] = "softmax"
    """Of the router's logits. The last compares the logits themselves."""
    renormalised: bool = False
    """Whether the weights of the chosen are divided by their sum."""
    scale: float = 1.0
    """Of the weights."""
    selection_bias: bool = False
    groups: int = 1
    groups_chosen: int = 1
    """Experts are chosen from the best groups alone."""
    group_score: Literal["best", "best two"] = "best"

    def check(self, experts: int, where: object) -> None:
        """Raises CorruptModel."""
        if not 1 <= self.chosen <= experts:
            raise CorruptModel(where, f"{self.chosen} of {experts} experts cannot be chosen")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise CorruptModel(where, "the scale of the experts' weights cannot be")
        if (
            self.groups < 1
            or experts % self.groups
            or not 1 <= self.groups_chosen <= self.groups
            or self.chosen > experts // self.groups * self.groups_chosen
        ):
            raise CorruptModel(
                where, f"{self.chosen} of {experts} experts in {self.groups_chosen} of {self.groups} groups cannot be chosen"
            )


class Experts(msgspec.Struct, frozen=True):
    """Gated MLPs of which a router chooses some for each row; and one, perhaps, that every row takes."""

    count: int
    width: int
    """Of one expert."""
    routing: Routing
    activation: Activation = "silu"
    shared: int = 0
    """Width of the shared expert; 0: there is none."""
    shared_gate: bool = False
    """Whether the sigmoid of a product of the row weights the shared expert."""

    def expert(self, hidden: int, number: int) -> Shapes:
        """The matrices of one expert."""
        return {f"experts.{number}.{name}": shape for name, shape in Dense(self.width).matrices(hidden).items()}

    def always(self, hidden: int) -> Shapes:
        """The matrices that every row is multiplied with."""
        shared = {f"shared.{name}": shape for name, shape in Dense(self.shared).matrices(hidden).items()} if self.shared else {}
        return {"router": (self.count, hidden), **shared, **({"shared_gate": (1, hidden)} if self.shared_gate else {})}

    def matrices(self, hidden: int) -> Shapes:
        routed = {name: shape for number in range(self.count) for name, shape in self.expert(hidden, number).items()}
        return {**self.always(hidden), **routed}

    def vectors(self) -> dict[str, int]:
        return {"selection_bias": self.count} if self.routing.selection_bias else {}

    def check(self, where: object) -> None:
        """Raises CorruptModel, UnsupportedModel."""
        if not 1 <= self.count <= _MOST_EXPERTS:
            raise CorruptModel(where, f"{self.count} experts cannot be")
        self.routing.check(self.count, where)
        Dense(self.width).check(where)
        if self.shared:
            Dense(self.shared).check(where)
        elif self.shared_gate:
            raise CorruptModel(where, "the shared expert has a gate and no width")


class LayerSpec(msgspec.Struct, frozen=True):
    """Attention, then a feed-forward part, each added to what went in."""

    attention: GroupedQuery | Latent
    feed_forward: Dense | Experts
    norms: Literal["before", "after", "both"] = "before"
    """Whether each part normalises what it takes, what it gives, or both."""
    parallel: bool = False
    """Whether both parts take the same input, under one norm."""
    residual_scale: float = 1.0
    """Of what each part gives, before it is added."""

    def vectors(self, hidden: int) -> dict[str, int]:
        """Lengths of those that must be there."""
        before = ["attention_norm"] if self.parallel else ["attention_norm", "mlp_norm"]
        names = [
            *(before if self.norms != "after" else []),
            *(["attention_after_norm", "mlp_after_norm"] if self.norms != "before" else []),
        ]
        return {**dict.fromkeys(names, hidden), **self.attention.vectors(), **self.feed_forward.vectors()}

    def check(self, where: object) -> None:
        """Raises CorruptModel, UnsupportedModel."""
        if not (math.isfinite(self.residual_scale) and self.residual_scale > 0):
            raise CorruptModel(where, "the scale of the residual cannot be")
        self.attention.check(where)
        self.feed_forward.check(where)


Rotation = tuple[Rope, int]
"""A rotary embedding, and the width of what it rotates: the cosines and sines that layers share."""


def rotation(layer: LayerSpec) -> Rotation | None:
    """A layer's; None if it encodes no positions."""
    attention = layer.attention
    if attention.rope is None:
        return None
    return attention.rope, attention.rope_dim if isinstance(attention, Latent) else attention.rope.rotated(attention.head_dim)


class ModelSpec(msgspec.Struct, frozen=True):
    """A decoder: embedding, layers, a norm, the output head."""

    family: str
    hidden: int
    vocabulary: int
    eps: float
    context: int
    tied: bool
    """Whether the output head is the embedding."""
    layers: tuple[LayerSpec, ...]
    norm: Literal["rms", "layer"] = "rms"
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    """Logits become cap * tanh(logit / cap); 0: they stay."""

    def matrices(self, layer: int) -> Shapes:
        """Those of a layer."""
        spec = self.layers[layer]
        return {**spec.attention.matrices(self.hidden), **spec.feed_forward.matrices(self.hidden)}

    def names(self, layer: int) -> Iterator[str]:
        """Of all matrices and vectors that a layer must have."""
        yield from self.matrices(layer)
        yield from self.layers[layer].vectors(self.hidden)

    @property
    def rotations(self) -> list[Rotation]:
        """Those that differ, in the order of the layers."""
        return list(dict.fromkeys(found for layer in self.layers if (found := rotation(layer)) is not None))

    def check(self, where: object) -> None:
        """Refuses shapes that cannot be run. Raises CorruptModel or UnsupportedModel."""
        if min(len(self.layers), self.hidden, self.vocabulary) < 1:
            raise CorruptModel(where, "a size of the model is missing or not positive")
        if not (math.isfinite(self.eps) and self.eps >= 0 and self.context >= 1):
            raise CorruptModel(where, "the norm's epsilon or the context length cannot be")
        if not all(math.isfinite(n) and n > 0 for n in (self.embedding_scale, self.logit_scale)) or not 0 <= self.logit_cap < math.inf:
            raise CorruptModel(where, "a scale of the embedding or the logits cannot be")
        if self.hidden % 16:
            raise UnsupportedModel(f"{where}: the hidden states' width ({self.hidden}) must be a multiple of 16")
        for layer in set(self.layers):
            layer.check(where)
        if (
            total := sum(layer.feed_forward.count for layer in self.layers if isinstance(layer.feed_forward, Experts))
        ) > _MOST_EXPERTS_IN_ALL:
            raise CorruptModel(where, f"{total} experts in {len(self.layers)} layers cannot be")
