"""Attention of every form in the kernels against double precision, on every instruction set."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from shoal.config import KvType
from tests.support.kernel_parts import (
    assert_it_does_not_matter_how,
    compiled,
    error,
    forward,
    module,
    normal,
    nothing_fed_forward,
    on_every_isa,
)
from tests.support.kernel_reference import Grouped, LatentQuery, Mlp, Normed

pytestmark = compiled
HIDDEN, ROWS = 64, 70
X = normal(ROWS, HIDDEN)


def angles(rotated: int, rows: int = ROWS) -> Any:
    return np.arange(rows)[:, None] * 0.7 ** np.arange(rotated // 2)[None]


FORMS: dict[str, Grouped] = {
    "plain": Grouped(),
    "biases": Grouped(biased=True),
    "one KV head": Grouped(kv_heads=1),
    "a sink": Grouped(sinks=True),
    "a cap": Grouped(cap=1.5, scale=0.8),
    "bounds": Grouped(clip=0.4),
    "a window": Grouped(window=20),
    "a window, a sink and a cap": Grouped(window=33, sinks=True, cap=2.0),
    "part of a head rotated": Grouped(rotated=8),
    "another part rotated": Grouped(rotated=24, norm="head"),
    "values wider than keys": Grouped(key_dim=16, value_dim=48, rotated=16),
    "keys wider than values": Grouped(key_dim=96, value_dim=16, rotated=96),
    "norms of heads": Grouped(norm="head"),
    "norms of all heads": Grouped(norm="full"),
    "norms of all heads, then bounds": Grouped(norm="full", clip=0.5),
    "layer norms of heads": Grouped(norm="centred"),
    "many heads of one": Grouped(q_heads=24, kv_heads=1, key_dim=16, value_dim=16, rotated=16),
}


@on_every_isa
@pytest.mark.parametrize("form", FORMS)
def test_every_form(isa: str, form: str) -> None:
    wanted, x = FORMS[form], X.astype(np.float64)
    turned = angles(wanted.rotated)
    got = forward([(wanted.made(module.Around()), nothing_fed_forward(HIDDEN), wanted.kept)], X, angles=[turned], isa=isa)
    assert error(got - X, wanted(x, turned)) < 3e-6


@on_every_isa
@pytest.mark.parametrize("form", ["plain", "a sink", "a cap", "values wider than keys"])
def test_rounded_keys_and_values_are_near(isa: str, form: str) -> None:
    wanted = FORMS[form]
    turned, layers = angles(wanted.rotated), [(wanted.made(module.Around()), nothing_fed_forward(HIDDEN), wanted.kept)]
    got = forward(layers, X, angles=[turned], isa=isa, kv_type=KvType.BF16)
    assert 0 < error(got - X, wanted(X.astype(np.float64), turned)) < 0.01


@on_every_isa
def test_without_rotation(isa: str) -> None:
    wanted = Grouped(rotated=0)
    got = forward([(wanted.made(module.Around(), rotation=-1), nothing_fed_forward(HIDDEN), wanted.kept)], X, isa=isa)
    assert error(got - X, wanted(X.astype(np.float64), None)) < 3e-6


def test_layers_take_the_rotation_that_they_name() -> None:
    first, second = Grouped(), Grouped(rotated=16)
    layers = [(form.made(module.Around(), rotation=at), nothing_fed_forward(HIDDEN), form.kept) for form, at in ((first, 1), (second, 0))]
    turned = [angles(16), angles(32) * 0.3]
    x = X.astype(np.float64)
    x = x + first(x, turned[1])
    assert error(forward(layers, X, angles=turned), x + second(x, turned[0])) < 3e-6


LONG = normal(1040, HIDDEN)


@cache
def attended_long(form: Grouped) -> Any:
    return form(LONG.astype(np.float64), angles(32, len(LONG)))


@on_every_isa
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("form", [Grouped(sinks=True), Grouped(sinks=True, cap=2.0, window=600, value_dim=48)], ids=["sink", "all"])
def test_long_contexts_in_pieces(isa: str, threads: int, form: Grouped) -> None:
    """The last rows one by one: several pieces of the context, which are joined with the sink once."""
    layers = [(form.made(module.Around()), nothing_fed_forward(HIDDEN), form.kept)]
    got = forward(layers, LONG, angles=[angles(32, len(LONG))], isa=isa, threads=threads, pieces=[1037, 1038, 1039])
    assert error(got - LONG, attended_long(form)) < 3e-6


# Latent attention

LATENT: dict[str, LatentQuery] = {
    "plain": LatentQuery(),
    "queries by way of a vector": LatentQuery(q_rank=48),
    "wide": LatentQuery(heads=3, rank=96, nope=48, rope=32, value_dim=16),
    "many heads": LatentQuery(heads=20, value_dim=16),
}


@on_every_isa
@pytest.mark.parametrize("form", LATENT)
def test_latent_attention(isa: str, form: str) -> None:
    wanted = LATENT[form]
    turned = angles(wanted.rope)
    got = forward([(wanted.made(module.Around()), nothing_fed_forward(HIDDEN), wanted.kept)], X, angles=[turned], isa=isa)
    assert error(got - X, wanted(X.astype(np.float64), turned)) < 3e-6


@on_every_isa
def test_latent_attention_goes_through_all_of_its_phases(isa: str) -> None:
    """Rounded, with a vector between, a norm after and a scale: the most phases that a block has. The next part has all of its own."""
    form, mlp, norm = LatentQuery(q_rank=64, value_dim=32), Mlp.random(HIDDEN, 64, 1), Normed(normal(HIDDEN, seed=5))
    around, turned, x = module.Around(norm.made(), norm.made(), 0.5), angles(16), X.astype(np.float64)
    layers = [(form.made(around, target="q8"), module.Dense(module.Around(norm.made()), mlp.made()), form.kept)]
    x = x + 0.5 * norm(form(norm(x), turned))
    assert error(forward(layers, X, angles=[turned], isa=isa), x + mlp(norm(x), "silu")) < 0.02


# What shares a step


@on_every_isa
@pytest.mark.parametrize("target", ["f32", "q8"])
@pytest.mark.parametrize("kv_type", list(KvType))
def test_no_row_depends_on_what_shares_its_step(isa: str, target: str, kv_type: KvType) -> None:
    norm = Normed(normal(HIDDEN, seed=5))
    forms: list[Grouped | LatentQuery] = [
        Grouped(sinks=True, window=20, rotated=16, norm="head"),
        Grouped(cap=2.0, value_dim=48, rotated=16),
        LatentQuery(q_rank=64),
        LatentQuery(heads=6, rank=64, value_dim=16),
    ]
    layers = [(form.made(module.Around(norm.made()), target=target), nothing_fed_forward(HIDDEN), form.kept) for form in forms]
    assert_it_does_not_matter_how(layers, X, isa, angles=[angles(16)], kv_type=kv_type)


@on_every_isa
def test_both_parts_of_a_layer_may_take_one_input(isa: str) -> None:
    form, mlp, norm = Grouped(), Mlp.random(HIDDEN, 64, 1), Normed(normal(HIDDEN, seed=5), centred=True)
    turned, x = angles(32), X.astype(np.float64)
    dense = module.Dense(module.Around(same_input=True), mlp.made())
    layers = [(form.made(module.Around(norm.made())), dense, form.kept)]
    assert error(forward(layers, X, angles=[turned], isa=isa), x + form(norm(x), turned) + mlp(norm(x), "silu")) < 3e-6
    rounded = [
        (form.made(module.Around(norm.made()), target="q8"), module.Dense(module.Around(same_input=True), mlp.made("q8")), form.kept)
    ]
    assert_it_does_not_matter_how(rounded, X, isa, angles=[turned])


def test_the_second_part_rounds_the_input_where_the_first_did_not() -> None:
    form, mlp, norm = Grouped(), Mlp.random(HIDDEN, 64, 1), Normed(normal(HIDDEN, seed=5), centred=True)
    turned, x = angles(32), X.astype(np.float64)
    made = [(form.made(module.Around(norm.made())), module.Dense(module.Around(same_input=True), mlp.made("q8")), form.kept)]
    assert error(forward(made, X, angles=[turned]), x + form(norm(x), turned) + mlp(norm(x), "silu")) < 0.02
