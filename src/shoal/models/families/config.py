"""A config.json of Hugging Face, as the families read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.families.layer_count import layer_count
from shoal.models.families.size import size
from shoal.models.spec import Activation, Dense, Experts, GroupedQuery, Latent, LayerSpec, ModelSpec, Rope

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}


class ConfigJson:
    """Methods raise CorruptModel, UnsupportedModel, and ValueError, TypeError, OverflowError for values of other kinds."""

    def __init__(self, family: str, values: Mapping[str, Any], where: object) -> None:
        """where: what errors name."""
        self.family = family
        self._values, self.where = values, where

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def whole(self, key: str) -> int:
        """A size."""
        if self._values.get(key) is None:
            raise CorruptModel(self.where, f"config.json has no '{key}'")
        return size(self._values[key], f"'{key}' in config.json", self.where)

    def under(self, key: str) -> ConfigJson:
        """The configuration that a key holds; empty where there is none."""
        return ConfigJson(self.family, cast("Mapping[str, Any]", self.get(key) or {}), self.where)

    def unsupported(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.where}: {what}")

    def only_causal(self) -> None:
        """Refuses a model that is trained to see the tokens that follow: one that embeds texts. Raises UnsupportedModel."""
        if self.get("use_bidirectional_attention"):
            raise self.unsupported("a model that embeds texts, with bidirectional attention, is not supported")

    def language(self, kind: str, **defaults: Any) -> ConfigJson:
        """That of the language model, where images can be given to it as well; else this one.

        kind: the `model_type` that it has to be. defaults: what transformers assumes of values that are not there.
        """
        inner = self.under("text_config")
        if not self.get("text_config"):
            return self
        if (found := str(inner.get("model_type", kind))) != kind:
            raise self.unsupported(f"a language model of model_type '{found}' is not supported")
        tied = {"tie_word_embeddings": self.get("tie_word_embeddings")} if "tie_word_embeddings" in self._values else {}
        return ConfigJson(self.family, {**defaults, **inner._values, **tied}, self.where)

    @property
    def layers(self) -> int:
        return layer_count(self.whole("num_hidden_layers"), self.where)

    @property
    def hidden(self) -> int:
        return self.whole("hidden_size")

    @property
    def window(self) -> int:
        """0: none."""
        return int(self.get("sliding_window") or 0)

    @property
    def head_dim(self) -> int:
        heads = self.whole("num_attention_heads")
        if min(self.hidden, heads) < 1:
            raise CorruptModel(self.where, "a size in config.json is not positive")
        return int(self.get("head_dim") or self.hidden // heads)

    def model(self, layers: Sequence[LayerSpec], **changes: Any) -> ModelSpec:
        """The whole of it: what most families say alike, but for some."""
        told: dict[str, Any] = {
            "hidden": self.get("hidden_size"),
            "vocabulary": self.get("vocab_size"),
            "eps": float(self.get("rms_norm_eps", 1e-6)),
            "context": self.get("max_position_embeddings"),
            "tied": bool(self.get("tie_word_embeddings", False)),
            **changes,
        }
        for key, stored in (("hidden", "hidden_size"), ("vocabulary", "vocab_size"), ("context", "max_position_embeddings")):
            if key not in changes:
                told[key] = self.whole(stored)
        return ModelSpec(family=self.family, layers=tuple(layers), **told)

    def grouped_query(self, **changes: Any) -> GroupedQuery:
        """What most families say alike, but for some."""
        heads = self.whole("num_attention_heads")
        told: dict[str, Any] = {
            "q_heads": heads,
            "kv_heads": int(self.get("num_key_value_heads") or heads),
            "head_dim": self.head_dim,
            **changes,
        }
        if "rope" not in told:
            told["rope"] = self.rope()
        return GroupedQuery(**told)

    def latent(self) -> Latent:
        nope, rope = self.whole("qk_nope_head_dim"), self.rope(head_dim=self.whole("qk_rope_head_dim"))
        scale, told = (nope + self.whole("qk_rope_head_dim")) ** -0.5, self._rope_values()
        if rope.kind == "yarn" and (all_dim := float(told.get("mscale_all_dim") or 0)):
            scale *= mscale(rope.factor, all_dim) ** 2
        return Latent(
            q_heads=self.whole("num_attention_heads"),
            kv_rank=self.whole("kv_lora_rank"),
            nope_dim=nope,
            rope_dim=self.whole("qk_rope_head_dim"),
            value_dim=self.whole("v_head_dim"),
            rope=rope,
            scale=scale,
            q_rank=int(self.get("q_lora_rank") or 0),
        )

    @property
    def activation(self) -> Activation:
        name = str(self.get("hidden_activation") or self.get("hidden_act") or "silu")
        if name not in _ACTIVATIONS:
            raise self.unsupported(f"activation '{name}' is not supported")
        return _ACTIVATIONS[name]

    def dense(self, width: int | None = None) -> Dense:
        return Dense(self.whole("intermediate_size") if width is None else width, self.activation)

    def experts_count(self) -> int:
        for key in ("num_local_experts", "num_experts", "n_routed_experts"):
            if self.get(key) is not None:
                return self.whole(key)
        raise CorruptModel(self.where, "config.json does not say how many experts there are")

    def each_layer(self, make: Callable[[int], LayerSpec]) -> tuple[LayerSpec, ...]:
        """A layer for each number; equal ones are one object."""
        made: dict[LayerSpec, LayerSpec] = {}
        return tuple(made.setdefault(layer, layer) for layer in map(make, range(self.layers)))

    def like(self, attention: GroupedQuery | Latent, feed_forward: Dense | Experts, **changes: Any) -> tuple[LayerSpec, ...]:
        """Layers that are all alike."""
        return (LayerSpec(attention, feed_forward, **changes),) * self.layers

    def windowed(self, windows: Sequence[int], make: Callable[[int], LayerSpec]) -> tuple[LayerSpec, ...]:
        """Layers that differ by their windows, of which there is one for each."""
        if len(windows) != self.layers:
            raise CorruptModel(self.where, f"config.json describes {len(windows)} of {self.layers} layers")
        made = {window: make(window) for window in set(windows)}
        return tuple(made[window] for window in windows)

    def dense_layers(self, windows: Sequence[int], **attention: Any) -> tuple[LayerSpec, ...]:
        """Alike but for their windows."""
        return self.windowed(windows, lambda window: LayerSpec(self.grouped_query(window=window, **attention), self.dense()))

    def _rope_values(self) -> dict[str, Any]:
        # transformers 5 writes rope_parameters, earlier ones rope_theta and rope_scaling.
        return dict(cast("Mapping[str, Any]", self.get("rope_parameters") or self.get("rope_scaling") or {}))

    def rope(self, scaling: Mapping[str, Any] | None = None, head_dim: int | None = None, **changes: Any) -> Rope:
        """scaling: where it is not the configuration's only one. head_dim: where heads are not all that is rotated."""
        told = self._rope_values() if scaling is None else dict(scaling)
        partial = float(told.get("partial_rotary_factor") or self.get("partial_rotary_factor") or 1.0)
        width = self.head_dim if head_dim is None else head_dim
        dims = 0 if partial == 1.0 else int(width * partial)
        kind = str(told.get("rope_type") or told.get("type") or "default")
        theta = float(told.get("rope_theta") or self.get("rope_theta") or 10000.0)
        if kind == "longrope":
            return self._longrope(told, theta, dims, width)
        if kind not in ("default", "linear", "llama3", "yarn"):
            raise self.unsupported(f"rope scaling '{kind}' is not supported")
        factor = float(told.get("factor") or 1.0)
        attention_factor = None if told.get("attention_factor") is None else float(told["attention_factor"])
        if kind == "yarn" and attention_factor is None and told.get("mscale") and told.get("mscale_all_dim"):
            attention_factor = mscale(factor, float(told["mscale"])) / mscale(factor, float(told["mscale_all_dim"]))
        made: dict[str, Any] = {
            "theta": theta,
            "kind": kind,
            "factor": factor,
            "low_freq_factor": float(told.get("low_freq_factor") or 1.0),
            "high_freq_factor": float(told.get("high_freq_factor") or 4.0),
            "original_context": int(told.get("original_max_position_embeddings") or self.whole("max_position_embeddings")),
            "beta_fast": float(told.get("beta_fast") or 32.0),
            "beta_slow": float(told.get("beta_slow") or 1.0),
            "attention_factor": attention_factor,
            "truncate": bool(told.get("truncate", True)),
            "dims": dims,
            **changes,
        }
        return Rope(**made)

    def _longrope(self, told: Mapping[str, Any], theta: float, dims: int, width: int) -> Rope:
        context = self.whole("max_position_embeddings")
        original = int(told.get("original_max_position_embeddings") or self.get("original_max_position_embeddings") or context)
        factor = float(told.get("factor") or context / max(original, 1))
        return Rope(
            theta=theta,
            kind="factors",
            dims=dims,
            factors=tuple(float(f) for f in told["short_factor"]),
            long_factors=tuple(float(f) for f in told["long_factor"]),
            original_context=original,
            attention_factor=longrope_attention(factor, original)
            if told.get("attention_factor") is None
            else float(told["attention_factor"]),
        )


def mscale(factor: float, by: float) -> float:
    """Yarn's factor on attention (transformers, modeling_rope_utils)."""
    return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0


def longrope_attention(factor: float, original: int) -> float:
    """Longrope's factor on cosine and sine (transformers, modeling_rope_utils)."""
    return 1.0 if factor <= 1 or original <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
