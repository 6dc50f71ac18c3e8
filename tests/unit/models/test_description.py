"""What there is to know about a model from outside."""

from __future__ import annotations

from pathlib import Path

from shoal.facts import ModelFacts
from shoal.models.description import describe, facts
from tests.support import tiny


def test_facts_of_a_model(tmp_path: Path) -> None:
    built = tiny.model("qwen2")
    matrices = sum(parameter.numel() for parameter in built.parameters() if parameter.ndim == 2)
    got = facts(describe(str(tiny.saved(built, tmp_path))))
    assert got == ModelFacts(
        family="qwen2",
        layers=3,
        hidden=64,
        intermediate=96,
        q_heads=4,
        kv_heads=2,
        head_dim=16,
        value_dim=16,
        vocabulary=97,
        context=512,
        parameters=matrices,
        bytes=4 * matrices,
        container="safetensors",
        quantization="F32",
    )
