"""Models that fit a family almost are refused, by what they have that it has not."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import UnsupportedModel
from shoal.models.families.read import spec_from_config, spec_from_gguf
from tests.support import tiny

COMMAND_R: dict[str, Any] = {
    "block_count": 2,
    "embedding_length": 64,
    "attention.head_count": 4,
    "feed_forward_length": 96,
    "context_length": 512,
    "attention.layer_norm_epsilon": 1e-5,
}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("cohere", {"use_qk_norm": True}, "Command R"),
        ("gemma", {"use_bidirectional_attention": True}, "bidirectional"),
        ("gemma", {"hidden_act": "relu"}, "activation 'relu'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "bidirectional"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse", "dense"]}, "dense layers after"),
        ("glm4_moe_lite", {"rope_interleave": False}, "rope_interleave"),
        ("granitemoehybrid", {"layer_types": ["mamba", "attention", "mamba"], "position_embedding_type": "rope"}, "recurrent"),
        ("granitemoehybrid", {"layer_types": ["attention"] * 3}, "without rotation"),
        ("hunyuan_v1_dense", {}, "model_type 'hunyuan_v1_dense'"),
        ("mistral3", {"text_config": {**tiny.SIZES, "model_type": "ministral3"}}, "model_type 'ministral3'"),
    ],
)
def test_by_config_json(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        spec_from_config({**tiny.SIZES, "model_type": family, **changes}, "m")


def test_by_the_tensors_of_a_gguf_file() -> None:
    meta = {"general.architecture": "command-r", **{f"command-r.{key}": value for key, value in COMMAND_R.items()}}
    shapes = {"token_embd.weight": (97, 64)}
    spec_from_gguf(meta, shapes, {}, "m").check("m")
    with pytest.raises(UnsupportedModel, match="Command R"):
        spec_from_gguf(meta, {**shapes, "blk.0.attn_q_norm.weight": (4, 16)}, {}, "m")


def test_gemma_s_published_name_of_its_activation() -> None:
    """'gelu', by which it means the approximation, as transformers reads it."""
    published, new = (
        spec_from_config({**tiny.SIZES, "model_type": "gemma", "hidden_act": name}, "m") for name in ("gelu", "gelu_pytorch_tanh")
    )
    assert published == new
