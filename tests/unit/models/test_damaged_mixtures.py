"""Files of Mixture-of-Experts models that do not hold together: each is refused by the name of what is wrong, before anything is packed.

A case changes the tensors of a file that is as it should be, or what the file says of itself.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import load_file, save_file

from shoal.errors import CorruptModel, ModelError, ShoalError, UnsupportedModel
from shoal.executor.base import Runtime
from shoal.executor.shard import Shard
from shoal.models.description import describe
from shoal.models.weights import Weights, open_weights
from tests.support import gguf_families, tiny, tiny_families

pytestmark = pytest.mark.slow

MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_hidden_layers": 2},
    "qwen2 moe": {"num_hidden_layers": 2},
    "deepseek v3": {"num_hidden_layers": 2},
    "gpt-oss": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "granite moe": {"num_hidden_layers": 2},
}
Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors], object]


class Made(Exception):
    """All was in order: the runtime was about to be made."""


def nothing_is_packed(weights: Weights, layer: int) -> Runtime:
    raise Made


def load(path: Path) -> None:
    weights = open_weights(path)
    Shard(nothing_is_packed).load(range(len(weights.spec.layers)), weights)


class Originals:
    """Whole files of each model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def directory(self, name: str) -> Path:
        path = self._folder / f"{name}.directory"
        return path if path.exists() else tiny.saved(self.built(name), path)

    def gguf(self, name: str, layout: str = "") -> Path:
        path = self._folder / f"{name}{layout}.gguf"
        return path if path.exists() else gguf_families.write(self.built(name), path, layout=layout)

    def built(self, name: str) -> Any:
        return tiny_families.model(name, **MODELS[name])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return Originals(tmp_path_factory.mktemp("whole"))


def directory(originals: Originals, name: str, into: Path, change: Change = lambda tensors: None, **config: Any) -> Path:
    source = originals.directory(name)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file({key: np.ascontiguousarray(values) for key, values in tensors.items()}, into / "model.safetensors", {"format": "pt"})
    (into / "config.json").write_text(json.dumps({**json.loads((source / "config.json").read_text()), **config}))
    return into


def gguf(originals: Originals, name: str, into: Path, change: Change = lambda tensors: None, layout: str = "", **keys: Any) -> Path:
    """keys: after the architecture's name, with a double underscore for the dot; None leaves one out."""
    reader = GGUFReader(originals.gguf(name, layout))
    meta = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    arch = meta.pop("general.architecture")
    meta |= {f"{arch}.{key.replace('__', '.')}": value for key, value in keys.items()}
    tensors = {str(tensor.name): np.array(tensor.data) for tensor in reader.tensors}
    change(tensors)
    writer = GGUFWriter(into / "m.gguf", arch)
    for key, value in meta.items():
        if value is not None:
            gguf_families.add(writer, key, value)
    for key, values in tensors.items():
        writer.add_tensor(key, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return into / "m.gguf"


def without(*parts: str) -> Change:
    """Takes away every tensor whose name has one of these in it; there is at least one for each."""

    def change(tensors: Tensors) -> None:
        for part in parts:
            names = [name for name in tensors if part in name]
            assert names, part
            for name in names:
                del tensors[name]

    return change


def cut(name: str, axis: int, to: int) -> Change:
    """Shortens a tensor."""

    def change(tensors: Tensors) -> None:
        assert tensors[name].shape[axis] > to
        tensors[name] = tensors[name].take(range(to), axis)

    return change


@pytest.mark.parametrize("name", MODELS)
def test_whole_files_are_loaded(name: str, originals: Originals) -> None:
    for path in (originals.directory(name), originals.gguf(name)):
        with pytest.raises(Made):
            load(path)


# Tensors

MIXTRAL, DEEPSEEK, GPT_OSS = "model.layers.1.block_sparse_moe.", "model.layers.1.mlp.", "model.layers.1.mlp."
ATTENTION = "model.layers.1.self_attn."
DIRECTORIES: dict[str, tuple[str, Change, str]] = {
    "a missing expert": (
        "mixtral",
        without("1.block_sparse_moe.experts.5.w2"),
        f"no tensor {MIXTRAL}experts.5.w2.weight; the model has 8 experts",
    ),
    "an expert without one matrix": (
        "deepseek v3",
        without("experts.15.gate_proj"),
        f"no tensor {DEEPSEEK}experts.15.gate_proj.weight; the model",
    ),
    "a short expert": ("mixtral", cut(f"{MIXTRAL}experts.3.w1.weight", 0, 80), f"{MIXTRAL}experts.3.w1.weight has shape [80, 64] where"),
    "a narrow expert": ("mixtral", cut(f"{MIXTRAL}experts.7.w2.weight", 1, 80), f"{MIXTRAL}experts.7.w2.weight has shape [64, 80] where"),
    "a router of another width": ("mixtral", cut(f"{MIXTRAL}gate.weight", 1, 48), f"{MIXTRAL}gate.weight has shape [8, 48] where"),
    "a router for fewer": ("qwen2 moe", cut("model.layers.1.mlp.gate.weight", 0, 7), "mlp.gate.weight has shape [7, 64] where"),
    "no router": ("mixtral", without("1.block_sparse_moe.gate."), f"no tensor {MIXTRAL}gate.weight"),
    "no router's bias": ("gpt-oss", without("1.mlp.router.bias"), f"no tensor {GPT_OSS}router.bias"),
    "a short router's bias": (
        "gpt-oss",
        cut(f"{GPT_OSS}router.bias", 0, 7),
        f"{GPT_OSS}router.bias has 7 values where the model's sizes say 8",
    ),
    "no experts' bias": ("gpt-oss", without("1.mlp.experts.down_proj_bias"), f"no tensor {GPT_OSS}experts.down_proj_bias"),
    "biases of fewer": (
        "gpt-oss",
        cut(f"{GPT_OSS}experts.gate_up_proj_bias", 0, 7),
        f"{GPT_OSS}experts.gate_up_proj_bias has 896 values where",
    ),
    "fewer in one tensor": ("gpt-oss", cut(f"{GPT_OSS}experts.down_proj", 0, 7), f"{GPT_OSS}experts.down_proj has shape [7, 64, 64] where"),
    "halves that differ": (
        "granite moe",
        cut("model.layers.1.block_sparse_moe.input_linear.weight", 1, 191),
        "input_linear.weight has shape [8, 191,",
    ),
    "no sinks": ("gpt-oss", without("1.self_attn.sinks"), f"no tensor {ATTENTION}sinks"),
    "too few sinks": ("gpt-oss", cut(f"{ATTENTION}sinks", 0, 3), f"{ATTENTION}sinks has 3 values where the model's sizes say 4"),
    "no bias for the choice": ("deepseek v3", without("1.mlp.gate.e_score"), f"no tensor {DEEPSEEK}gate.e_score_correction_bias"),
    "a short bias for the choice": (
        "deepseek v3",
        cut(f"{DEEPSEEK}gate.e_score_correction_bias", 0, 8),
        f"{DEEPSEEK}gate.e_score_correction_bias has 8 values where the model's sizes say 16",
    ),
    "no shared expert": ("deepseek v3", without("shared_experts.up_proj"), f"no tensor {DEEPSEEK}shared_experts.up_proj.weight"),
    "no gate of the shared expert": (
        "qwen2 moe",
        without("1.mlp.shared_expert_gate"),
        "no tensor model.layers.1.mlp.shared_expert_gate.weight",
    ),
    "a narrow latent": (
        "deepseek v3",
        cut(f"{ATTENTION}kv_b_proj.weight", 1, 16),
        f"{ATTENTION}kv_b_proj.weight has shape [192, 16] where",
    ),
    "no norm of the latent": ("deepseek v3", without("1.self_attn.kv_a_layernorm"), f"no tensor {ATTENTION}kv_a_layernorm.weight"),
    "a layer without attention": ("mixtral", without("1.self_attn."), f"no tensor {ATTENTION}q_proj.weight"),
    "a layer without latent attention": ("deepseek v3", without("1.self_attn."), f"no tensor {ATTENTION}q_a_proj.weight"),
    "no head": ("mixtral", without("lm_head"), "no tensor lm_head.weight"),
    "no norm before the head": ("mixtral", without("model.norm"), "no tensor model.norm.weight"),
}


@pytest.mark.parametrize("what", DIRECTORIES)
def test_tensors_of_a_directory(what: str, originals: Originals, tmp_path: Path) -> None:
    name, change, message = DIRECTORIES[what]
    path = directory(originals, name, tmp_path, change)
    for attempt in (load, lambda path: describe(str(path))):
        with pytest.raises(CorruptModel) as caught:
            attempt(path)
        assert message in str(caught.value)


FILES: dict[str, tuple[str, Change, str]] = {
    "fewer in one tensor": (
        "mixtral",
        cut("blk.1.ffn_up_exps.weight", 0, 7),
        "blk.1.ffn_up_exps.weight has shape [7, 96, 64] where the model's sizes say [8",
    ),
    "short experts": ("mixtral", cut("blk.1.ffn_up_exps.weight", 1, 80), "blk.1.ffn_up_exps.weight has shape [8, 80, 64] where"),
    "narrow experts": ("qwen2 moe", cut("blk.0.ffn_down_exps.weight", 2, 16), "blk.0.ffn_down_exps.weight has shape [8, 64, 16] where"),
    "no experts": ("mixtral", without("1.ffn_down_exps"), "no tensor blk.1.ffn_down_exps.weight; the model has 8 experts"),
    "a router of another width": ("mixtral", cut("blk.1.ffn_gate_inp.weight", 1, 48), "blk.1.ffn_gate_inp.weight has shape [8, 48] where"),
    "no router": ("deepseek v3", without("1.ffn_gate_inp"), "no tensor blk.1.ffn_gate_inp.weight"),
    "no router's bias": ("gpt-oss", without("1.ffn_gate_inp.bias"), "no tensor blk.1.ffn_gate_inp.bias"),
    "no experts' bias": ("gpt-oss", without("1.ffn_up_exps.bias"), "no tensor blk.1.ffn_up_exps.bias"),
    "biases of fewer": (
        "gpt-oss",
        cut("blk.1.ffn_up_exps.bias", 0, 7),
        "blk.1.ffn_up_exps.bias has 448 values where the model's sizes say 512",
    ),
    "no sinks": ("gpt-oss", without("1.attn_sinks"), "no tensor blk.1.attn_sinks.weight"),
    "no shared expert": ("qwen2 moe", without("1.ffn_up_shexp"), "no tensor blk.1.ffn_up_shexp.weight"),
    "a short bias for the choice": ("deepseek v3", cut("blk.1.exp_probs_b.bias", 0, 8), "blk.1.exp_probs_b.bias has 8 values where"),
    "a head less": ("deepseek v3", cut("blk.1.attn_k_b.weight", 0, 3), "blk.1.attn_k_b.weight has shape [3, 32, 16] where"),
    "a layer without attention": ("deepseek v3", without("blk.1.attn_"), "no tensor blk.1.attn_q_a.weight"),
}


@pytest.mark.parametrize("what", FILES)
def test_tensors_of_a_file(what: str, originals: Originals, tmp_path: Path) -> None:
    name, change, message = FILES[what]
    with pytest.raises(CorruptModel) as caught:
        load(gguf(originals, name, tmp_path, change))
    assert message in str(caught.value)


def test_a_missing_expert_of_a_file_with_a_tensor_for_each(originals: Originals, tmp_path: Path) -> None:
    path = gguf(originals, "mixtral", tmp_path, without("blk.1.ffn_up.6."), layout="expert tensors")
    with pytest.raises(CorruptModel, match=r"no tensor blk\.1\.ffn_up_exps\.weight; the model has 8 experts"):
        load(path)


def test_only_layers_that_are_loaded_have_to_be_whole(originals: Originals, tmp_path: Path) -> None:
    weights = open_weights(directory(originals, "mixtral", tmp_path, without("1.block_sparse_moe.experts.5")))
    with pytest.raises(Made):
        Shard(nothing_is_packed).load(range(1), weights)
    with pytest.raises(CorruptModel):
        Shard(nothing_is_packed).load(range(1, 2), weights)


# What a file says of itself

CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "more experts": (
        "mixtral",
        {"num_local_experts": 9},
        "block_sparse_moe.gate.weight has shape [8, 64] where the model's sizes say [9, 64]",
    ),
    "fewer experts": (
        "mixtral",
        {"num_local_experts": 7},
        "block_sparse_moe.gate.weight has shape [8, 64] where the model's sizes say [7, 64]",
    ),
    "more in one tensor": ("gpt-oss", {"num_local_experts": 9}, "mlp.router.weight has shape [8, 64] where the model's sizes say [9, 64]"),
    "no experts": ("mixtral", {"num_local_experts": 0}, "'num_local_experts' in config.json cannot be 0"),
    "none chosen": ("mixtral", {"num_experts_per_tok": 0}, "'num_experts_per_tok' in config.json cannot be 0"),
    "too many chosen": ("mixtral", {"num_experts_per_tok": 9}, "9 of 8 experts cannot be chosen"),
    "groups that do not divide": ("deepseek v3", {"n_group": 3}, "4 of 16 experts in 2 of 3 groups cannot be chosen"),
    "too many groups": ("deepseek v3", {"topk_group": 5}, "4 of 16 experts in 5 of 4 groups cannot be chosen"),
    "groups that are too small": ("deepseek v3", {"n_group": 16, "topk_group": 2}, "4 of 16 experts in 2 of 16 groups cannot be chosen"),
    "2**31 experts": ("deepseek v3", {"n_routed_experts": 2**31}, "'n_routed_experts' in config.json cannot be 2147483648"),
    "2**31 chosen": ("mixtral", {"num_experts_per_tok": 2**31}, "'num_experts_per_tok' in config.json cannot be 2147483648"),
    "a million experts": ("mixtral", {"num_local_experts": 10**6}, "1000000 experts cannot be"),
    "a thousand experts in thousands of layers": (
        "mixtral",
        {"num_local_experts": 1024, "num_hidden_layers": 4000},
        "4096000 experts in 4000 layers cannot be",
    ),
    "2**31 layers": ("mixtral", {"num_hidden_layers": 2**31}, "'num_hidden_layers' in config.json cannot be 2147483648"),
    "wide experts": (
        "mixtral",
        {"intermediate_size": 2**30},
        "experts.0.w1.weight has shape [96, 64] where the model's sizes say [1073741824, 64]",
    ),
    "a negative width": ("qwen2 moe", {"moe_intermediate_size": -32}, "'moe_intermediate_size' in config.json cannot be -32"),
    "many shared experts": ("deepseek v3", {"n_shared_experts": 2**30}, "shared_experts.gate_proj.weight has shape [32, 64] where"),
    "no latent": ("deepseek v3", {"kv_lora_rank": 0}, "'kv_lora_rank' in config.json cannot be 0"),
    "a wide latent": ("deepseek v3", {"kv_lora_rank": 2**30}, "the latent vectors' width (1073741824) must be"),
    "no queries' latent": ("deepseek v3", {"q_lora_rank": 0}, "q_b_proj.weight has shape [128, 48] where the model's sizes say [128, 64]"),
    "no dense layer": ("deepseek v3", {"first_k_dense_replace": 0}, "no tensor model.layers.0.mlp.gate.weight"),
    "all layers dense": ("deepseek v3", {"first_k_dense_replace": 2**31}, "no tensor model.layers.1.mlp.gate_proj.weight"),
    "no attention": ("mixtral", {"num_attention_heads": 0}, "'num_attention_heads' in config.json cannot be 0"),
    "many heads": (
        "mixtral",
        {"num_attention_heads": 2**30},
        "q_proj.weight has shape [64, 64] where the model's sizes say [17179869184, 64]",
    ),
    "text": ("mixtral", {"num_local_experts": "eight"}, "'num_local_experts' in config.json is no whole number (eight)"),
}


def refused(load: Callable[[], object]) -> str:
    """What is said; little memory is taken."""
    tracemalloc.start()
    try:
        with pytest.raises((CorruptModel, UnsupportedModel)) as caught:
            load()
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    return str(caught.value)


@pytest.mark.parametrize("what", CONFIGS)
def test_configurations(what: str, originals: Originals, tmp_path: Path) -> None:
    name, config, message = CONFIGS[what]
    path = directory(originals, name, tmp_path, **config)
    assert message in refused(lambda: load(path))
    assert message in refused(lambda: describe(str(path)))


METADATA: dict[str, tuple[str, dict[str, Any], str]] = {
    "more experts": ("mixtral", {"expert_count": 9}, "blk.0.ffn_gate_inp.weight has shape [8, 64] where the model's sizes say [9, 64]"),
    "fewer experts": ("qwen2 moe", {"expert_count": 7}, "blk.0.ffn_gate_inp.weight has shape [8, 64] where the model's sizes say [7, 64]"),
    "no experts": ("qwen2 moe", {"expert_count": 0}, "qwen2moe.expert_count cannot be 0"),
    "no number of experts": ("qwen2 moe", {"expert_count": None}, "the metadata has no qwen2moe.expert_count"),
    "none chosen": ("deepseek v3", {"expert_used_count": 0}, "deepseek2.expert_used_count cannot be 0"),
    "too many chosen": ("mixtral", {"expert_used_count": 9}, "9 of 8 experts cannot be chosen"),
    "groups that do not divide": ("deepseek v3", {"expert_group_count": 5}, "4 of 16 experts in 2 of 5 groups cannot be chosen"),
    "too many groups": ("deepseek v3", {"expert_group_used_count": 5}, "4 of 16 experts in 5 of 4 groups cannot be chosen"),
    "2**31 experts": ("mixtral", {"expert_count": 2**31}, "llama.expert_count cannot be 2147483648"),
    "2**31 groups": ("deepseek v3", {"expert_group_count": 2**31}, "4 of 16 experts in 2 of 2147483648 groups cannot be chosen"),
    "scores of another kind": ("deepseek v3", {"expert_gating_func": 9}, "expert_gating_func 9 is not supported"),
    "wide experts": ("qwen2 moe", {"expert_feed_forward_length": 2**30}, "blk.0.ffn_gate_exps.weight has shape [8, 32, 64] where"),
    "many shared experts": ("deepseek v3", {"expert_shared_count": 2**20}, "blk.1.ffn_gate_shexp.weight has shape [32, 64] where"),
    "no latent": ("deepseek v3", {"attention__kv_lora_rank": 0}, "deepseek2.attention.kv_lora_rank cannot be 0"),
    "a wide latent": ("deepseek v3", {"attention__kv_lora_rank": 2**31}, "deepseek2.attention.kv_lora_rank cannot be 2147483648"),
    "no dense layer": ("deepseek v3", {"leading_dense_block_count": 0}, "no tensor blk.0.ffn_gate_inp.weight"),
    "no attention": ("gpt-oss", {"attention__head_count": 0}, "gpt-oss.attention.head_count cannot be 0"),
    "a layer without attention": ("mixtral", {"attention__head_count": [4, 0]}, "attention.head_count differs from layer to layer"),
    "a layer more": ("mixtral", {"block_count": 3}, "no tensor blk.2.attn_q.weight"),
    "2**31 layers": ("mixtral", {"block_count": 2**31}, "llama.block_count cannot be 2147483648"),
}


@pytest.mark.parametrize("what", METADATA)
def test_metadata(what: str, originals: Originals, tmp_path: Path) -> None:
    name, keys, message = METADATA[what]
    path = gguf(originals, name, tmp_path, **keys)
    assert message in refused(lambda: load(path))


# Files that are cut


@pytest.mark.parametrize("left", [0.0, 0.001, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("kind", ["gguf", "directory"])
def test_files_that_are_cut(kind: str, left: float, originals: Originals, tmp_path: Path) -> None:
    """left: of the file's bytes, but for one."""
    path = gguf(originals, "deepseek v3", tmp_path) if kind == "gguf" else directory(originals, "deepseek v3", tmp_path)
    file = path if kind == "gguf" else path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int((len(whole) - 1) * left)])
    with pytest.raises(ModelError, match=f"{file.name}.*(truncated|bytes are no)"):
        load(path)


def test_a_tensor_that_claims_more_than_there_is(originals: Originals, tmp_path: Path) -> None:
    """By a damaged header, which names sizes that nobody has."""
    path = gguf(originals, "mixtral", tmp_path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"blk.1.ffn_up_exps.weight") + len(b"blk.1.ffn_up_exps.weight") + 4
    raw[at + 16 : at + 24] = (2**31).to_bytes(8, "little")  # the experts
    path.write_bytes(raw)
    assert "tensor blk.1.ffn_up_exps.weight lies beyond its end" in refused(lambda: load(path))


def test_every_byte_of_a_header_may_be_wrong(originals: Originals, tmp_path: Path) -> None:
    """Whatever is said of it, it is no other exception than the product's own."""
    path = gguf(originals, "deepseek v3", tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    end = whole.index(b"output_norm.weight")
    for at in rng.integers(24, end, 300):
        raw = bytearray(whole)
        raw[at] ^= int(rng.integers(1, 256))
        path.write_bytes(raw)
        with pytest.raises((ShoalError, Made)):
            load(path)
