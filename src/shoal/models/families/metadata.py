"""The metadata of a GGUF file, as the families read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.families.layer_count import layer_count
from shoal.models.spec import Dense, GroupedQuery, LayerSpec, Rope


class GgufMetadata:
    """Keys of one architecture. Methods raise CorruptModel, UnsupportedModel, and ValueError, TypeError, OverflowError for values of other kinds."""

    def __init__(self, architecture: str, meta: Mapping[str, Any], factors: Sequence[float], where: object) -> None:
        """factors: rope_freqs.weight, empty where the file has none. where: what errors name."""
        self.architecture, self.where = architecture, where
        self._meta, self._factors = meta, factors

    def __contains__(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._meta

    def get(self, key: str, default: Any) -> Any:
        return self._meta.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        if key not in self:
            raise CorruptModel(self.where, f"the metadata has no {self.architecture}.{key}")
        return self._meta[f"{self.architecture}.{key}"]

    def whole(self, key: str) -> int:
        """A size that is the same in every layer, however it is written."""
        value = self.need(key)
        if isinstance(value, list):
            values = cast("list[int]", value)
            if len(set(values)) != 1:
                raise self.unsupported(f"{key} differs from layer to layer")
            return int(values[0])
        return int(value)

    def unsupported(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.where}: {what}")

    @property
    def layers(self) -> int:
        return layer_count(self.whole("block_count"), self.where)

    @property
    def hidden(self) -> int:
        return self.whole("embedding_length")

    @property
    def eps(self) -> float:
        return float(self.need("attention.layer_norm_rms_epsilon"))

    @property
    def context(self) -> int:
        return self.whole("context_length")

    def grouped_query(self, qk_norm: bool = False) -> GroupedQuery:
        heads = self.whole("attention.head_count")
        if heads < 1:
            raise CorruptModel(self.where, "no attention heads")
        head_dim = int(self.get("attention.key_length", self.hidden // heads))
        if int(self.get("attention.value_length", head_dim)) != head_dim:
            raise self.unsupported("keys and values of different widths are not supported")
        if int(self.get("rope.dimension_count", head_dim)) != head_dim:
            raise self.unsupported("partial rotary embedding is not supported")
        return GroupedQuery(
            q_heads=heads,
            kv_heads=self.whole("attention.head_count_kv") if "attention.head_count_kv" in self else heads,
            head_dim=head_dim,
            rope=self._rope(),
            window=int(self.get("attention.sliding_window", 0)),
            qk_norm=qk_norm,
        )

    def dense(self) -> Dense:
        if int(self.get("expert_count", 0)):
            raise self.unsupported("Mixture-of-Experts models are not supported yet")
        return Dense(self.whole("feed_forward_length"))

    def dense_layers(self, qk_norm: bool = False) -> tuple[LayerSpec, ...]:
        """All alike."""
        return (LayerSpec(self.grouped_query(qk_norm), self.dense()),) * self.layers

    def _rope(self) -> Rope:
        kind = str(self.get("rope.scaling.type", "none"))
        for key in ("rope.scaling.attn_factor", "rope.scale_linear", "rope.scaling.yarn_attn_factor"):
            if float(self.get(key, 1.0)) != 1.0:
                raise self.unsupported(f"{key} is not supported")
        theta = float(self.get("rope.freq_base", 10000.0))
        if self._factors:
            return Rope(theta=theta, kind="factors", factors=tuple(float(factor) for factor in self._factors))
        if kind == "none":
            return Rope(theta=theta)
        if kind not in ("linear", "yarn"):
            raise self.unsupported(f"rope scaling '{kind}' is not supported")
        return Rope(
            theta=theta,
            kind=kind,
            factor=float(self.get("rope.scaling.factor", 1.0)),
            original_context=int(self.get("rope.scaling.original_context_length", self.context)),
            beta_fast=float(self.get("rope.scaling.yarn_beta_fast", 32.0)),
            beta_slow=float(self.get("rope.scaling.yarn_beta_slow", 1.0)),
        )
