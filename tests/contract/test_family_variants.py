"""What models of a family may have that the tiny ones of tiny_families.py have not: logits as transformers gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.models.weights import SafetensorsWeights
from tests.support import tiny, tiny_families
from tests.support.stages import Stages

WINDOWS = {"num_hidden_layers": 4, "sliding_window": 20}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere biases": ("cohere", {"attention_bias": True, "tie_word_embeddings": False}),
    "dots1 as they are": (
        "dots1",
        {"norm_topk_prob": False, "n_group": 2, "topk_group": 1, "attention_bias": True},
    ),
    "dots1 windows": ("dots1", {"sliding_window": 20, "max_window_layers": 1}),
    "ernie 4.5 biases": ("ernie 4.5", {"use_bias": True, "tie_word_embeddings": False}),
    "ernie 4.5 moe without shared experts": ("ernie 4.5 moe", {"moe_num_shared_experts": 0, "tie_word_embeddings": False}),
    "ernie 4.5 moe in every other layer": ("ernie 4.5 moe", {"num_hidden_layers": 6, "moe_layer_interval": 2, "moe_layer_end_index": 4}),
    "exaone4 by its pattern": ("exaone4", {**WINDOWS, "layer_types": None, "sliding_window_pattern": 3}),
    "exaone4 llama3": ("exaone4 windows", {"rope_parameters": {**tiny.LLAMA3, "rope_theta": 5000.0}}),
    "gemma untied": ("gemma", {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma3 beside images by its pattern": ("gemma3 beside images", {"sliding_window_pattern": 3}),
    "glm without biases": ("glm", {"attention_bias": False}),
    "glm all rotated": ("glm", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}),
    "glm4 moe lite without narrow queries": ("glm4 moe lite", {"q_lora_rank": None, "n_group": 2, "topk_group": 1}),
    "mistral beside images with a window": ("mistral beside images", {"sliding_window": 20}),
    "seed-oss biases": ("seed-oss", {"attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_transformers(name: str, tmp_path: Path) -> None:
    of, changes = CASES[name]
    built = tiny_families.model(of, **changes)
    weights = SafetensorsWeights(tiny.saved(built, tmp_path))
    np.testing.assert_allclose(Stages(weights, 2).logits(tiny.TOKENS, 30), tiny.logits(built, tiny.TOKENS), atol=1e-4, rtol=1e-4)
