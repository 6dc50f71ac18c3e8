"""Which layers of a config.json have experts, where it says so as Qwen's do."""

from __future__ import annotations

from typing import cast

from shoal.models.families.config import ConfigJson


def sparse(config: ConfigJson) -> list[bool]:
    """By `mlp_only_layers` and `decoder_sparse_step`."""
    dense = set(cast("list[int]", config.get("mlp_only_layers") or []))
    step = int(config.get("decoder_sparse_step") or 1)
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(config.layers)]
