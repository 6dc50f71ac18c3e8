"""A model as a list of layers: what is checked of each, and what a runtime that knows one kind of layer is told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.spec import Dense, GroupedQuery, LayerSpec, ModelSpec, Rope

LAYER = LayerSpec(GroupedQuery(4, 2, 16, Rope()), Dense(96))


def attending(**changes: Any) -> LayerSpec:
    return msgspec.structs.replace(LAYER, attention=msgspec.structs.replace(LAYER.attention, **changes))


def model(*layers: LayerSpec) -> ModelSpec:
    return ModelSpec("toy", 64, 97, 1e-5, 512, False, layers)


def test_layers_that_differ_in_their_windows_alone_have_a_common_form() -> None:
    assert model(LAYER, attending(window=8)).common == LAYER


@pytest.mark.parametrize("other", [attending(kv_heads=4), attending(rope=Rope(theta=5e5)), LayerSpec(LAYER.attention, Dense(48))])
def test_layers_of_two_kinds_are_refused_by_what_knows_one(other: LayerSpec) -> None:
    spec = model(LAYER, other)
    spec.check("m")
    with pytest.raises(UnsupportedModel, match="toy: layers that differ"):
        _ = spec.common


@pytest.mark.parametrize("wrong", [attending(kv_heads=3), attending(q_heads=0), attending(window=-1), LayerSpec(LAYER.attention, Dense(0))])
def test_every_layer_is_checked(wrong: LayerSpec) -> None:
    with pytest.raises(CorruptModel):
        model(LAYER, LAYER, wrong).check("m")


def test_a_model_without_layers_is_none() -> None:
    with pytest.raises(CorruptModel):
        model().check("m")
