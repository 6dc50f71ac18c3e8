"""The metadata of a GGUF file, as the families read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.families.layer_count import layer_count
from shoal.models.families.size import size
from shoal.models.spec import Activation, Dense, Experts, GroupedQuery, Latent, LayerSpec, ModelSpec, Rope, Routing


class GgufMetadata:
    """Keys of one architecture. Methods raise CorruptModel, UnsupportedModel, and ValueError, TypeError, OverflowError for values of other kinds."""

    def __init__(
        self,
        family: str,
        meta: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        factors: Mapping[str, Sequence[float]],
        where: object,
    ) -> None:
        """shapes: of the file's tensors, rows first. factors: rope_freqs, rope_factors_short, rope_factors_long, those that it has.
        where: what errors name."""
        self.family, self.architecture, self.where = family, str(meta.get("general.architecture")), where
        self.shapes, self._meta, self._factors = shapes, meta, factors

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
            value = values[0]
        return size(value, f"{self.architecture}.{key}", self.where)

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

    def each(self, key: str) -> list[int]:
        """A number for each layer, however it is written."""
        value = self.need(key)
        return [int(v) for v in cast("list[int]", value)] if isinstance(value, list) else [int(value)] * self.layers

    def model(self, layers: Sequence[LayerSpec], **changes: Any) -> ModelSpec:
        """The whole of it: what most families say alike, but for some."""
        if not (vocabulary := self.shapes.get("token_embd.weight", ())[:1]):
            raise CorruptModel(self.where, "no token_embd.weight")
        told: dict[str, Any] = {
            "hidden": self.hidden,
            "vocabulary": int(vocabulary[0]),
            "context": self.context,
            "tied": "output.weight" not in self.shapes,
            **changes,
        }
        if "eps" not in told:
            told["eps"] = self.eps
        return ModelSpec(family=self.family, layers=tuple(layers), **told)

    @property
    def head_dim(self) -> int:
        heads = max(self.each("attention.head_count"))
        if heads < 1:
            raise CorruptModel(self.where, f"{self.architecture}.attention.head_count cannot be {heads}")
        return int(self.get("attention.key_length", self.hidden // heads))

    @property
    def window(self) -> int:
        """0: none."""
        return int(self.get("attention.sliding_window", 0))

    def grouped_query(self, **changes: Any) -> GroupedQuery:
        """What most families say alike, but for some."""
        heads, width = self.whole("attention.head_count"), self.head_dim
        values = int(self.get("attention.value_length", width))
        told: dict[str, Any] = {
            "q_heads": heads,
            "kv_heads": self.whole("attention.head_count_kv") if "attention.head_count_kv" in self else heads,
            "head_dim": width,
            "value_dim": 0 if values == width else values,
            "window": self.window,
            **changes,
        }
        if "rope" not in told:
            told["rope"] = self.rope()
        return GroupedQuery(**told)

    def dense(self, activation: Activation = "silu") -> Dense:
        return Dense(self.whole("feed_forward_length"), activation)

    def experts(self, routing: Routing, width: int | None = None, **changes: Any) -> Experts:
        """width: of one; by its own key where nothing is said."""
        return Experts(self.whole("expert_count"), self.whole("expert_feed_forward_length") if width is None else width, routing, **changes)

    def routing(self) -> Routing:
        """As the keys of DeepSeek and its like say."""
        scores = int(self.get("expert_gating_func", 1))
        if scores not in (1, 2):
            raise self.unsupported(f"expert_gating_func {scores} is not supported")
        return Routing(
            self.chosen,
            "softmax" if scores == 1 else "sigmoid",
            renormalised=bool(self.get("expert_weights_norm", False)),
            scale=float(self.get("expert_weights_scale", 1.0)) or 1.0,
            selection_bias=any(name.endswith("exp_probs_b.bias") for name in self.shapes),
            groups=max(int(self.get("expert_group_count", 1)), 1),
            groups_chosen=max(int(self.get("expert_group_used_count", 1)), 1),
            group_score="best" if scores == 1 else "best two",
        )

    @property
    def chosen(self) -> int:
        return self.whole("expert_used_count")

    def like(self, attention: GroupedQuery | Latent, feed_forward: Dense | Experts, **changes: Any) -> tuple[LayerSpec, ...]:
        """Layers that are all alike."""
        return (LayerSpec(attention, feed_forward, **changes),) * self.layers

    def dense_layers(self, **attention: Any) -> tuple[LayerSpec, ...]:
        """All alike."""
        return self.like(self.grouped_query(**attention), self.dense())

    def rope(self, theta: float | None = None, head_dim: int | None = None, scaled: bool = True, **yarn: Any) -> Rope:
        """theta: where it is not the file's first. head_dim: where heads are not all that is rotated. scaled: whether its scaling applies.
        yarn: what else holds of that scaling."""
        kind = str(self.get("rope.scaling.type", "none")) if scaled else "none"
        for key in ("rope.scale_linear",):
            if float(self.get(key, 1.0)) != 1.0:
                raise self.unsupported(f"{key} is not supported")
        width = self.head_dim if head_dim is None else head_dim
        dims = int(self.get("rope.dimension_count", width))
        dims = 0 if dims == width else dims
        theta = float(self.get("rope.freq_base", 10000.0)) if theta is None else theta
        original = int(self.get("rope.scaling.original_context_length", self.context))
        if not scaled:
            return Rope(theta=theta, dims=dims)
        if "rope_factors_short" in self._factors and "rope_factors_long" in self._factors:
            return Rope(
                theta=theta,
                kind="factors",
                dims=dims,
                factors=tuple(self._factors["rope_factors_short"]),
                long_factors=tuple(self._factors["rope_factors_long"]),
                original_context=original,
                attention_factor=float(self.get("rope.scaling.attn_factor", 1.0)),
            )
        if float(self.get("rope.scaling.attn_factor", 1.0)) != 1.0:
            raise self.unsupported("rope.scaling.attn_factor is not supported")
        if factors := self._factors.get("rope_freqs"):
            return Rope(theta=theta, kind="factors", factors=tuple(factors), dims=dims)
        if kind == "none":
            return Rope(theta=theta, dims=dims)
        if kind not in ("linear", "yarn"):
            raise self.unsupported(f"rope scaling '{kind}' is not supported")
        return Rope(
            theta=theta,
            kind=kind,
            factor=float(self.get("rope.scaling.factor", 1.0)),
            original_context=original,
            beta_fast=float(self.get("rope.scaling.yarn_beta_fast", 32.0)),
            beta_slow=float(self.get("rope.scaling.yarn_beta_slow", 1.0)),
            dims=dims,
            **(yarn if kind == "yarn" else {}),
        )
