"""A config.json of Hugging Face, as the families read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.families.layer_count import layer_count
from shoal.models.spec import Dense, GroupedQuery, LayerSpec, Rope


class ConfigJson:
    """Methods raise CorruptModel, UnsupportedModel, and ValueError, TypeError, OverflowError for values of other kinds."""

    def __init__(self, values: Mapping[str, Any], where: object) -> None:
        """where: what errors name."""
        self._values, self.where = values, where

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def whole(self, key: str) -> int:
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise CorruptModel(self.where, f"config.json has no whole number '{key}'")
        return value

    def unsupported(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.where}: {what}")

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

    def grouped_query(self, window: int = 0, qk_norm: bool = False) -> GroupedQuery:
        heads = self.whole("num_attention_heads")
        if min(self.hidden, heads) < 1:
            raise CorruptModel(self.where, "a size in config.json is not positive")
        return GroupedQuery(
            q_heads=heads,
            kv_heads=int(self.get("num_key_value_heads") or heads),
            head_dim=int(self.get("head_dim") or self.hidden // heads),
            rope=self._rope(),
            window=window,
            qk_norm=qk_norm,
        )

    def dense(self) -> Dense:
        if self.get("hidden_act", "silu") != "silu":
            raise self.unsupported(f"activation '{self.get('hidden_act')}' is not supported")
        return Dense(self.whole("intermediate_size"))

    def dense_layers(self, windows: Sequence[int], qk_norm: bool = False) -> tuple[LayerSpec, ...]:
        """Alike but for their windows, of which there is one for each layer."""
        if len(windows) != self.layers:
            raise CorruptModel(self.where, f"config.json describes {len(windows)} of {self.layers} layers")
        made = {window: LayerSpec(self.grouped_query(window, qk_norm), self.dense()) for window in set(windows)}
        return tuple(made[window] for window in windows)

    def _rope(self) -> Rope:
        # transformers 5 writes rope_parameters, earlier ones rope_theta and rope_scaling.
        scaling = dict(cast("Mapping[str, Any]", self.get("rope_parameters") or self.get("rope_scaling") or {}))
        if float(scaling.get("partial_rotary_factor") or self.get("partial_rotary_factor") or 1.0) != 1.0:
            raise self.unsupported("partial rotary embedding is not supported")
        kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
        if kind not in ("default", "linear", "llama3", "yarn"):
            raise self.unsupported(f"rope scaling '{kind}' is not supported")
        if kind == "yarn" and (scaling.get("mscale") or scaling.get("mscale_all_dim")):
            raise self.unsupported("yarn with mscale is not supported")
        return Rope(
            theta=float(scaling.get("rope_theta") or self.get("rope_theta") or 10000.0),
            kind=kind,
            factor=float(scaling.get("factor") or 1.0),
            low_freq_factor=float(scaling.get("low_freq_factor") or 1.0),
            high_freq_factor=float(scaling.get("high_freq_factor") or 4.0),
            original_context=int(scaling.get("original_max_position_embeddings") or self.whole("max_position_embeddings")),
            beta_fast=float(scaling.get("beta_fast") or 32.0),
            beta_slow=float(scaling.get("beta_slow") or 1.0),
            attention_factor=None if scaling.get("attention_factor") is None else float(scaling["attention_factor"]),
            truncate=bool(scaling.get("truncate", True)),
        )
