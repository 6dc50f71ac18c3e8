"""A model as a list of layers: what each part has, and what is refused of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.spec import Dense, Experts, GroupedQuery, Latent, LayerSpec, ModelSpec, Rope, Routing

HIDDEN = 64
PLAIN, EXPERTS = GroupedQuery(4, 2, 16, Rope()), Experts(8, 48, Routing(2))
LATENT = Latent(q_heads=4, kv_rank=32, nope_dim=32, rope_dim=16, value_dim=48, rope=Rope(), scale=0.1, q_rank=96)
LAYER = LayerSpec(PLAIN, Dense(96))
INFINITE, NONE = float("inf"), float("nan")


def attending(**changes: Any) -> LayerSpec:
    return LayerSpec(msgspec.structs.replace(PLAIN, **changes), Dense(96))


def latent(**changes: Any) -> LayerSpec:
    return LayerSpec(msgspec.structs.replace(LATENT, **changes), Dense(96))


def routed(count: int = 8, width: int = 48, shared: int = 0, **routing: Any) -> LayerSpec:
    return LayerSpec(PLAIN, Experts(count, width, Routing(**{"chosen": 2, **routing}), shared=shared))


def model(*layers: LayerSpec, **changes: Any) -> ModelSpec:
    return msgspec.structs.replace(ModelSpec("toy", HIDDEN, 97, 1e-5, 512, False, layers), **changes)


# What a layer has


def test_grouped_query_attention() -> None:
    wide = msgspec.structs.replace(PLAIN, value_dim=48)
    assert wide.matrices(HIDDEN) == {"q": (64, 64), "k": (32, 64), "v": (96, 64), "o": (64, 192)}
    assert (PLAIN.kv_values, wide.kv_values) == (2 * 32, 2 * 64)
    assert (PLAIN.operations, wide.operations) == (4 * 64, 2 * 4 * 64)
    assert (PLAIN.scaling, msgspec.structs.replace(PLAIN, scale=0.5).scaling) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("changes", "vectors"),
    [
        ({}, {}),
        ({"qk_norm": "head"}, {"q_norm": 16, "k_norm": 16}),
        ({"qk_norm": "full", "sinks": True}, {"q_norm": 64, "k_norm": 32, "sinks": 4}),
    ],
)
def test_vectors_of_attention(changes: dict[str, Any], vectors: dict[str, int]) -> None:
    assert msgspec.structs.replace(PLAIN, **changes).vectors() == vectors


def test_latent_attention() -> None:
    both = {"kv_a": (48, 64), "k_b": (128, 32), "v_b": (192, 32), "o": (64, 192)}
    assert LATENT.matrices(HIDDEN) == {"q_a": (96, 64), "q": (192, 96), **both}
    assert msgspec.structs.replace(LATENT, q_rank=0).matrices(HIDDEN) == {"q": (192, 64), **both}
    assert LATENT.vectors() == {"q_a_norm": 96, "kv_a_norm": 32}
    assert LATENT.kv_values == 32 + 16 + 32
    assert LATENT.operations == 2 * 4 * (48 + 32)


def test_experts() -> None:
    one = EXPERTS.expert(HIDDEN, 3)
    assert one == {"experts.3.gate": (48, 64), "experts.3.up": (48, 64), "experts.3.down": (64, 48)}
    assert EXPERTS.always(HIDDEN) == {"router": (8, 64)}
    everything = msgspec.structs.replace(EXPERTS, shared=32, shared_gate=True, routing=Routing(2, selection_bias=True))
    assert everything.always(HIDDEN).keys() == {"router", "shared.gate", "shared.up", "shared.down", "shared_gate"}
    assert everything.always(HIDDEN)["shared.down"] == (64, 32) and everything.always(HIDDEN)["shared_gate"] == (1, 64)
    assert len(everything.matrices(HIDDEN)) == 5 + 8 * 3
    assert everything.vectors() == {"selection_bias": 8}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, "attention_norm mlp_norm"),
        ({"norms": "after"}, "attention_after_norm mlp_after_norm"),
        ({"norms": "both"}, "attention_norm mlp_norm attention_after_norm mlp_after_norm"),
        ({"parallel": True}, "attention_norm"),
    ],
)
def test_norms_of_a_layer(changes: dict[str, Any], names: str) -> None:
    assert msgspec.structs.replace(LAYER, **changes).vectors(HIDDEN) == dict.fromkeys(names.split(), HIDDEN)


def test_layers_may_differ_in_everything() -> None:
    spec = model(LAYER, LayerSpec(LATENT, EXPERTS), routed())
    spec.check("m")
    assert spec.matrices(0) == {**PLAIN.matrices(HIDDEN), **Dense(96).matrices(HIDDEN)}
    assert spec.matrices(1) == {**LATENT.matrices(HIDDEN), **EXPERTS.matrices(HIDDEN)}
    assert set(spec.names(1)) == {*spec.matrices(1), "q_a_norm", "kv_a_norm", "attention_norm", "mlp_norm"}


def test_rotations_are_those_that_differ() -> None:
    other, partial = Rope(theta=5e5), Rope(dims=8)
    spec = model(LAYER, attending(rope=other), LAYER, attending(rope=None), attending(rope=partial), LayerSpec(LATENT, EXPERTS))
    assert spec.rotations == [(Rope(), 16), (other, 16), (partial, 8)]


# What is refused


@pytest.mark.parametrize(
    "wrong",
    [
        attending(kv_heads=3),
        attending(q_heads=0),
        attending(window=-1),
        attending(value_dim=-16),
        attending(cap=NONE),
        attending(clip=INFINITE),
        attending(scale=-1.0),
        attending(rope=Rope(theta=0.5)),
        attending(rope=Rope(dims=3)),
        attending(rope=Rope(dims=32)),
        attending(rope=Rope(kind="factors", factors=(1.0,) * 8, dims=8)),
        attending(rope=Rope(kind="factors", factors=(1.0,) * 8, long_factors=(1.0,) * 4)),
        attending(rope=Rope(kind="factors", factors=(1.0,) * 8, long_factors=(0.0,) * 8)),
        attending(rope=Rope(kind="yarn", factor=2.0)),
        latent(kv_rank=0),
        latent(q_rank=-1),
        latent(scale=0.0),
        latent(rope=Rope(dims=32)),
        LayerSpec(PLAIN, Dense(0)),
        LayerSpec(PLAIN, Experts(8, 48, Routing(2), shared_gate=True)),
        routed(count=0),
        routed(count=2000),
        routed(chosen=9),
        routed(chosen=0),
        routed(scale=NONE),
        routed(groups=3),
        routed(groups=4, groups_chosen=5),
        routed(groups=0),
        routed(chosen=3, groups=4, groups_chosen=1),
        msgspec.structs.replace(LAYER, residual_scale=0.0),
    ],
    ids=str,
)
def test_every_layer_is_checked(wrong: LayerSpec) -> None:
    with pytest.raises(CorruptModel):
        model(LAYER, LAYER, wrong).check("m")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (attending(head_dim=24), "multiple of 16"),
        (attending(head_dim=1040), "at most 1024"),
        (attending(value_dim=528), "of values 512"),
        (attending(value_dim=8), "multiple of 16"),
        (latent(window=64), "latent attention with a window"),
        (latent(kv_rank=48), "multiple of 32"),
        (latent(kv_rank=544), "at most 512"),
        (latent(nope_dim=24), "multiple of 16"),
        (latent(q_rank=72), "multiple of 16"),
        (LayerSpec(PLAIN, Dense(24)), "multiple of 16"),
        (routed(width=24), "multiple of 16"),
        (routed(shared=24), "multiple of 16"),
    ],
    ids=str,
)
def test_what_the_kernels_cannot_run_is_told(wrong: LayerSpec, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        model(LAYER, wrong).check("m")


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": ()},
        {"eps": NONE},
        {"context": 0},
        {"embedding_scale": 0.0},
        {"logit_scale": INFINITE},
        {"logit_cap": -1.0},
        {"vocabulary": 0},
    ],
    ids=str,
)
def test_models_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptModel):
        model(LAYER, **changes).check("m")


def test_an_odd_width_of_hidden_states() -> None:
    with pytest.raises(UnsupportedModel, match="hidden states' width"):
        model(LAYER, hidden=72).check("m")
