"""The description of a model: its sizes, and a list of layers that may differ. `models/families` reads it from files."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from shoal.errors import CorruptModel, UnsupportedModel


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
    """Divisors of the frequencies, one per pair (GGUF's rope_freqs.weight, in which it stores llama3)."""

    def check(self, head_dim: int, where: object) -> None:
        """Refuses numbers that give no frequencies. Raises CorruptModel."""
        numbers = [self.theta, self.factor, self.low_freq_factor, self.high_freq_factor, self.beta_fast, self.beta_slow, *self.factors]
        if self.attention_factor is not None:
            numbers.append(self.attention_factor)
        if not all(math.isfinite(n) and n > 0 for n in numbers) or self.theta <= 1:
            raise CorruptModel(where, "the rotary embedding has a number that cannot be")
        if self.kind in ("llama3", "yarn") and (self.original_context < 1 or self.low_freq_factor == self.high_freq_factor):
            raise CorruptModel(where, "the rotary embedding's scaling does not hold together")
        if self.kind == "factors" and len(self.factors) != head_dim // 2:
            raise CorruptModel(where, f"{len(self.factors)} rotary factors do not fit heads of {head_dim}")


class GroupedQuery(msgspec.Struct, frozen=True):
    """Grouped-query attention, with rotary embedding of whole heads."""

    q_heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    window: int = 0
    """Tokens that a query sees, including itself; 0: all."""
    qk_norm: bool = False
    """Whether queries and keys are normalised per head before rotation."""

    @property
    def q_width(self) -> int:
        return self.q_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    def kv_bytes(self, element: int) -> int:
        """Bytes that one token's keys and values take."""
        return 2 * self.kv_width * element

    def check(self, where: object) -> None:
        """Raises CorruptModel, UnsupportedModel."""
        if min(self.q_heads, self.kv_heads, self.head_dim) < 1 or self.window < 0:
            raise CorruptModel(where, "a size of the attention is missing or not positive")
        self.rope.check(self.head_dim, where)
        if self.q_heads % self.kv_heads:
            raise CorruptModel(where, f"{self.q_heads} query heads do not divide over {self.kv_heads} KV heads")
        if self.head_dim % 16 or self.head_dim > 256:
            raise UnsupportedModel(f"{where}: the heads' width ({self.head_dim}) must be a multiple of 16, at most 256")


class Dense(msgspec.Struct, frozen=True):
    """A gated MLP: down(silu(gate(x)) * up(x))."""

    width: int

    def check(self, where: object) -> None:
        """Raises CorruptModel, UnsupportedModel."""
        if self.width < 1:
            raise CorruptModel(where, "the MLP's width is missing or not positive")
        if self.width % 16:
            raise UnsupportedModel(f"{where}: the MLP's width ({self.width}) must be a multiple of 16")


class LayerSpec(msgspec.Struct, frozen=True):
    """Attention, then a feed-forward part, each after a norm and added to what went in."""

    attention: GroupedQuery
    feed_forward: Dense

    def check(self, where: object) -> None:
        """Raises CorruptModel, UnsupportedModel."""
        self.attention.check(where)
        self.feed_forward.check(where)


class ModelSpec(msgspec.Struct, frozen=True):
    """A decoder of pre-norm layers (RMS norms)."""

    family: str
    hidden: int
    vocabulary: int
    eps: float
    context: int
    tied: bool
    """Whether the output head is the embedding."""
    layers: tuple[LayerSpec, ...]

    def check(self, where: object) -> None:
        """Refuses shapes that cannot be run. Raises CorruptModel or UnsupportedModel."""
        if min(len(self.layers), self.hidden, self.vocabulary) < 1:
            raise CorruptModel(where, "a size of the model is missing or not positive")
        if not (math.isfinite(self.eps) and self.eps >= 0 and self.context >= 1):
            raise CorruptModel(where, "the norm's epsilon or the context length cannot be")
        if self.hidden % 16:
            raise UnsupportedModel(f"{where}: the hidden states' width ({self.hidden}) must be a multiple of 16")
        for layer in set(self.layers):
            layer.check(where)

    @property
    def common(self) -> LayerSpec:
        """The layer that all layers equal, except for their windows. Runtimes and costs support no other models yet. Raises UnsupportedModel."""
        kinds = {msgspec.structs.replace(layer, attention=msgspec.structs.replace(layer.attention, window=0)) for layer in self.layers}
        if len(kinds) > 1:
            raise UnsupportedModel(f"{self.family}: layers that differ in more than their windows are not supported")
        return kinds.pop()
