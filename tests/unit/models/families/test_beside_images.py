"""The language models of those that take images: found where transformers 4 and 5 put them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shoal.models.families.read import spec_from_config
from shoal.models.layer_files import shard_files
from shoal.models.spec import GroupedQuery
from shoal.models.weights import SafetensorsWeights
from tests.support import tiny, tiny_families
from tests.support.stages import Stages

WRAPPED = ["gemma3 beside images", "mistral beside images"]
LAYOUTS = ["model.", "language_model.model.", "model.language_model."]


def moved(name: str, to: str) -> str:
    """A tensor's name under another layout. The head is beside the model, which transformers 5 has at the top."""
    if name.startswith("language_model.lm_head"):
        return name if to == "language_model.model." else name.removeprefix("language_model.")
    return to + name.removeprefix("language_model.model.") if name.startswith("language_model.model.") else name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", WRAPPED)
def test_where_the_tensors_may_be(name: str, layout: str, tmp_path: Path) -> None:
    built = tiny_families.model(name)
    file = tiny.saved(built, tmp_path) / "model.safetensors"
    save_file({moved(name, layout): values for name, values in load_file(file).items()}, file)
    np.testing.assert_allclose(Stages(SafetensorsWeights(tmp_path)).logits(tiny.TOKENS), tiny.logits(built, tiny.TOKENS), atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_node_fetches_the_embedding_only_if_it_needs_it(layout: str) -> None:
    files = {f"{layout}embed_tokens.weight": "a", f"{layout}layers.0.mlp.up_proj.weight": "b", f"{layout}layers.1.mlp.up_proj.weight": "c"}
    index = json.dumps({"weight_map": files}).encode()
    assert shard_files(index, range(1), first=True, last=False) == {"a", "b"}
    assert shard_files(index, range(1), first=False, last=False) == {"b"}


def test_sizes_that_published_files_leave_out() -> None:
    """config.json of Gemma 3 4B, as far as it says what the language model is."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    spec = spec_from_config({"model_type": "gemma3", "text_config": text}, "m")
    spec.check("m")
    first, sixth = spec.layers[0].attention, spec.layers[5].attention
    assert (spec.vocabulary, spec.context, spec.tied, len(spec.layers)) == (262208, 131072, True, 34)
    assert isinstance(first, GroupedQuery) and isinstance(sixth, GroupedQuery)
    assert (first.q_heads, first.kv_heads, first.head_dim, first.window, sixth.window) == (8, 4, 256, 1024, 0)
    assert first.rope is not None and sixth.rope is not None
    assert (first.rope.theta, first.rope.kind, sixth.rope.theta, sixth.rope.factor) == (1e4, "default", 1e6, 8.0)
