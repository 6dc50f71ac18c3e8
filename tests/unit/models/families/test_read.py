"""What a model is, read from a config.json or GGUF metadata."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from transformers import AutoConfig

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.families import FAMILIES
from shoal.models.families.read import spec_from_config, spec_from_gguf
from shoal.models.spec import Dense, GroupedQuery, LayerSpec, ModelSpec, Rope
from tests.support import tiny


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    return {**tiny.SIZES, "model_type": family, **changes}


def read(family: str = "llama", **changes: Any) -> ModelSpec:
    spec = spec_from_config(config(family, **changes), "m")
    spec.check("m")
    return spec


def meta(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "block_count": 3,
        "embedding_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "feed_forward_length": 96,
        "context_length": 512,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    values.update({key.replace("__", "."): value for key, value in changes.items()})
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in values.items() if v is not None}}


TENSORS = {"token_embd.weight": (97, 64), "output.weight": (97, 64)}


def read_gguf(
    arch: str = "llama", tensors: dict[str, tuple[int, ...]] = TENSORS, factors: tuple[float, ...] = (), **changes: Any
) -> ModelSpec:
    spec = spec_from_gguf(meta(arch, **changes), tensors, factors, "m")
    spec.check("m")
    return spec


def plain(spec: ModelSpec) -> ModelSpec:
    """Without its rotary embedding, of which the two kinds of file say different things that mean the same."""
    return msgspec.structs.replace(spec, layers=tuple(_plain(layer) for layer in spec.layers))


def _plain(layer: LayerSpec) -> LayerSpec:
    return msgspec.structs.replace(layer, attention=msgspec.structs.replace(layer.attention, rope=Rope()))


def rope_of(factors: tuple[float, ...] = (), **changes: Any) -> Rope:
    return read_gguf(factors=factors, **changes).common.attention.rope


@pytest.mark.parametrize("family", FAMILIES)
def test_as_transformers_writes_it(family: str) -> None:
    written = AutoConfig.for_model(family, **tiny.SIZES).to_dict()
    spec = spec_from_config(written, "m")
    layer = LayerSpec(GroupedQuery(4, 2, 16, spec.common.attention.rope, qk_norm=family == "qwen3"), Dense(96))
    assert (spec.common, len(spec.layers)) == (layer, 3)
    assert spec == ModelSpec(family, 64, 97, 1e-5, 512, False, spec.layers)


def test_both_kinds_of_file_say_the_same() -> None:
    assert plain(read_gguf()) == plain(read())


def test_what_may_be_left_out() -> None:
    spec = read(head_dim=None, num_key_value_heads=None)
    assert (spec.common.attention.head_dim, spec.common.attention.kv_heads) == (16, 4)
    assert read_gguf(attention__head_count_kv=None).common.attention.kv_heads == 4


def test_bytes_of_a_token() -> None:
    assert read().common.attention.kv_bytes(2) == 2 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, Rope()),
        ({"rope_theta": 5e5}, Rope(theta=5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(theta=5e5)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, Rope(kind="linear", factor=2.0)),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
            Rope(kind="yarn", factor=4.0, original_context=128),
        ),
    ],
)
def test_rope(changes: dict[str, Any], rope: Rope) -> None:
    found = read(**changes).common.attention.rope
    assert (found.theta, found.kind, found.factor) == (rope.theta, rope.kind, rope.factor)
    assert found.original_context == (rope.original_context or 512)


@pytest.mark.parametrize(
    ("family", "changes", "windows"),
    [
        ("llama", {"sliding_window": 8}, (0, 0, 0)),
        ("mistral", {}, (0, 0, 0)),
        ("mistral", {"sliding_window": None}, (0, 0, 0)),
        ("mistral", {"sliding_window": 8}, (8, 8, 8)),
        ("qwen2", {"sliding_window": 8}, (0, 0, 0)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1}, (0, 0, 0)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, (0, 8, 8)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, (0, 0, 0)),
        (
            "qwen3",
            {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            (0, 8, 0),
        ),
    ],
)
def test_windows(family: str, changes: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert tuple(layer.attention.window for layer in read(family, **changes).layers) == windows


def test_windows_of_gguf() -> None:
    assert [layer.attention.window for layer in read_gguf(attention__sliding_window=8).layers] == [8, 8, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "gpt2"}, "model_type 'gpt2'.*llama, mistral, qwen2, qwen3"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by 'gptq'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope scaling 'longrope'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"hidden_size": 72}, "multiple of 16"),
        ({"intermediate_size": 100}, "multiple of 16"),
        ({"head_dim": 24}, "multiple of 16"),
        ({"head_dim": 272}, "at most 256"),
    ],
    ids=str,
)
def test_models_that_are_not_supported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read(**changes)


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ],
)
@pytest.mark.parametrize("value", [None, "64", 1.5, True, [64]])
def test_sizes_that_are_none(key: str, value: Any) -> None:
    with pytest.raises(CorruptModel, match=key):
        read(**{key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 0},
        {"num_attention_heads": -4},
        {"vocab_size": 0},
        {"num_key_value_heads": 3},
        {"head_dim": -16},
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptModel):
        read(**changes)


def test_layer_types_of_another_number() -> None:
    with pytest.raises(CorruptModel):
        read("qwen3", sliding_window=8, layer_types=["full_attention"])


@pytest.mark.parametrize(("arch", "norm"), [("llama", False), ("qwen2", False), ("qwen3", True)])
def test_architectures_of_gguf(arch: str, norm: bool) -> None:
    spec = read_gguf(arch)
    assert (spec.family, spec.common.attention.qk_norm, spec.tied) == (arch, norm, False)


def test_a_gguf_file_without_a_head_is_tied() -> None:
    assert read_gguf(tensors={"token_embd.weight": (97, 64)}).tied


def test_rope_of_gguf() -> None:
    assert rope_of(rope__freq_base=5e5) == Rope(theta=5e5)
    assert rope_of(factors=(2.0,) * 8) == Rope(kind="factors", factors=(2.0,) * 8)
    scaled = rope_of(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=128)
    assert scaled == Rope(kind="yarn", factor=4.0, original_context=128)
    assert rope_of(rope__scaling__type="none", rope__scaling__factor=4.0) == Rope()


def test_sizes_that_are_the_same_in_every_layer() -> None:
    assert read_gguf(attention__head_count_kv=[2, 2, 2]).common.attention.kv_heads == 2


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("bert", {}, "architecture 'bert'"),
        ("llama", {"expert_count": 8}, "Mixture-of-Experts"),
        ("llama", {"attention__head_count_kv": [1, 2, 2]}, "differs from layer to layer"),
        ("llama", {"attention__value_length": 32}, "different widths"),
        ("llama", {"rope__dimension_count": 8}, "partial rotary"),
        ("llama", {"rope__scaling__type": "longrope"}, "'longrope'"),
    ],
)
def test_gguf_files_that_are_not_supported(arch: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read_gguf(arch, **changes)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention__head_count", "feed_forward_length"])
@pytest.mark.parametrize("value", [None, 0])
def test_gguf_sizes_that_are_missing(key: str, value: int | None) -> None:
    sizes: dict[str, Any] = {key: value}
    with pytest.raises(CorruptModel):
        read_gguf(**sizes)


def test_no_architecture() -> None:
    with pytest.raises(UnsupportedModel):
        spec_from_gguf({}, {}, (), "m")


def test_no_embedding() -> None:
    with pytest.raises(CorruptModel, match="token_embd"):
        read_gguf(tensors={})
