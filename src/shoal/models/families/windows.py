"""Which layers of a config.json see a window alone."""

from __future__ import annotations

from typing import cast

from shoal.models.families.config import ConfigJson


def by_type(config: ConfigJson) -> list[int]:
    """By `layer_types`; empty where it says nothing, or there is no window."""
    types = cast("list[str] | None", config.get("layer_types"))
    return [config.window if kind == "sliding_attention" else 0 for kind in types] if types and config.window else []


def from_some_layer_on(config: ConfigJson) -> list[int]:
    """By `layer_types`, else by `use_sliding_window` and `max_window_layers`: the layers below it see everything (Qwen)."""
    if types := by_type(config):
        return types
    if not config.get("use_sliding_window"):
        return [0] * config.layers
    full = int(config.get("max_window_layers", config.layers))
    return [config.window if layer >= full else 0 for layer in range(config.layers)]
