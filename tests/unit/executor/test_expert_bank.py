"""A node's experts come and go while it runs rows, and rows that it cannot run are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from shoal.config import Precision
from shoal.errors import ConfigError, RemoteProtocolError
from shoal.executor.expert_bank import ExpertBank
from shoal.models.weights import Weights
from shoal.wire.routed import Routed, merged
from tests.support.mixtures import Maker
from tests.support.routed_rows import changed, routed_of

LAYERS, EXPERTS = 6, 8


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def weights(make: Maker) -> Weights:
    return make("mixtral", Precision.Q8).weights


def bank_of(weights: Weights, precision: Precision = Precision.Q8, **held: list[int]) -> ExpertBank:
    """held: by layer, as "layer1"."""
    bank = ExpertBank(weights.spec, precision, 1)
    for layer, experts in held.items():
        bank.load(int(layer.removeprefix("layer")), experts, weights)
    return bank


def asked(weights: Weights, *rows: dict[int, float], layer: int = 1, first: int = 1, rounded: bool = True) -> Routed:
    return routed_of(rows, layer, weights.spec.hidden, rounded, first)


def test_what_is_loaded_is_held_and_counted(weights: Weights) -> None:
    bank = bank_of(weights)
    assert (bank.nbytes, bank.held, bank.expert_rows) == (0, {}, {})
    bank.load(1, [2, 0, 2], weights)
    one = bank.nbytes
    assert bank.held == {1: {0, 2}} and one > 0
    bank.load(1, [2], weights)
    assert bank.nbytes == one
    bank.load(3, [1], weights)
    assert bank.held == {1: {0, 2}, 3: {1}} and bank.nbytes == one * 3 // 2
    bank.run(asked(weights, {0: 1.0, 2: 0.5}, {2: 1.0}))
    assert {layer: counts.tolist() for layer, counts in bank.expert_rows.items()} == {1: [1, 0, 2, *[0] * 5], 3: [0] * EXPERTS}


def test_what_is_shed_is_freed_and_its_rows_stay_counted(weights: Weights) -> None:
    bank = bank_of(weights, layer1=[0, 1], layer2=[0])
    one = bank.nbytes // 3
    bank.run(asked(weights, {0: 1.0, 1: 1.0}))
    before = bank.expert_rows
    bank.shed({1: [1, 3], 5: [2]})
    assert bank.held == {1: {1}} and bank.nbytes == one
    bank.shed({})
    assert bank.held == {} and bank.nbytes == 0
    bank.load(1, [0], weights)
    bank.run(asked(weights, {0: 1.0}))
    assert before[1].tolist() == [1, 1, *[0] * 6]  # those were counts of that moment
    assert bank.expert_rows[1].tolist() == [2, 1, *[0] * 6]


def test_a_row_gets_the_same_sums_whatever_runs_beside_it(weights: Weights) -> None:
    bank = bank_of(weights, layer1=list(range(EXPERTS)))
    some = [asked(weights, {0: 0.5, 3: 1.0}, first=3), asked(weights, {1: 1.0}, {3: 0.25, 0: 1.0}, first=-7), asked(weights, {2: 2.0})]
    together = bank.run(merged(some))
    assert np.array_equal(together, np.concatenate([bank.run(routed) for routed in some]))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.Q8])
def test_a_row_that_is_no_number_spoils_no_other(weights: Weights, precision: Precision) -> None:
    bank = bank_of(weights, precision, layer1=list(range(EXPERTS)))
    good, bad = asked(weights, {0: 0.5, 3: 1.0}, first=3, rounded=False), asked(weights, {0: 1.0, 3: 1.0}, rounded=False)
    for field in ("x", "weights"):
        spoilt = changed(bad, **{field: np.full_like(getattr(bad, field), np.nan)})
        sums = bank.run(merged([good, spoilt, good]))
        assert np.array_equal(sums[0], bank.run(good)[0]) and np.array_equal(sums[2], sums[0])
        assert np.isnan(sums[1]).all()


def test_layers_and_experts_that_the_model_has_not_are_refused(weights: Weights) -> None:
    bank = bank_of(weights)
    for layer in (-1, LAYERS):
        with pytest.raises(ConfigError, match=f"layer {layer} of the model has no experts"):
            bank.load(layer, [0], weights)
    for expert in (-1, EXPERTS):
        with pytest.raises(ConfigError, match=f"layer 1 has {EXPERTS} experts, and no number {expert}"):
            bank.load(1, [expert], weights)
    assert bank.held == {} and bank.nbytes == 0


def test_a_dense_layer_has_no_experts(make: Maker) -> None:
    weights = make("deepseek v3", Precision.Q8).weights
    with pytest.raises(ConfigError, match="layer 0 of the model has no experts"):
        bank_of(weights, layer0=[0])


def test_rows_that_cannot_be_run_are_refused_and_not_counted(weights: Weights) -> None:
    bank = bank_of(weights, layer1=[0, 1])
    good = asked(weights, {0: 1.0, 1: 1.0})
    floats = asked(weights, {0: 1.0}, rounded=False)
    wrong: list[tuple[Any, str]] = [
        (asked(weights, {0: 1.0, 2: 1.0}), "layer 1 .*expert 2 is not here"),
        (asked(weights, {0: 1.0}, layer=2), "layer 2 are not here"),
        (asked(weights, {0: 1.0}, layer=10**9), "are not here"),
        (asked(weights, {10**9: 1.0}), "is not here"),
        (routed_of([{0: 1.0}], 1, weights.spec.hidden + 32), "cannot be run"),
        (routed_of([{0: 1.0}], 1, weights.spec.hidden + 32, rounded=False), "cannot be run"),
        (Routed(floats.header, good.body), "cannot be run"),
        (changed(good, index=good.index + 1), "cannot be run"),
        (changed(good, index=np.zeros(9, np.int32), weights=np.ones(9, np.float32)), "more of them than a row has"),
    ]
    for routed, why in wrong:
        with pytest.raises(RemoteProtocolError, match=why):
            bank.run(routed)
    assert not bank.expert_rows[1].any()
    bank.run(good)


def test_rows_are_refused_where_floats_are_multiplied_and_they_are_rounded(weights: Weights) -> None:
    with pytest.raises(RemoteProtocolError, match="cannot be run"):
        bank_of(weights, Precision.FP32, layer1=[0]).run(asked(weights, {0: 1.0}))


@pytest.mark.slow
def test_experts_come_and_go_while_rows_run(weights: Weights) -> None:
    """One thread runs, one loads and sheds, and one looks: rows of what is here get the same bits, and others are refused."""
    bank = bank_of(weights, layer1=[0, 1, 2, 3])
    stays, goes = asked(weights, {0: 1.0, 1: 0.5}, {1: 1.0}), asked(weights, {1: 1.0, 2: 1.0}, layer=1)
    wanted = [bank.run(stays), bank.run(goes)]
    with ThreadPoolExecutor(2) as pool:

        def change() -> None:
            for _ in range(40):
                bank.shed({1: [0, 1]})
                bank.load(2, [0], weights)
                bank.load(1, [2, 3], weights)

        def look() -> None:
            last = np.zeros(EXPERTS, np.uint64)
            while not changing.done():
                now = bank.expert_rows[1]
                assert (now >= last).all() and bank.nbytes > 0 and bank.held[1] >= {0, 1}
                last = now

        changing = pool.submit(change)
        looking = pool.submit(look)
        runs, refused = 0, 0
        while not changing.done():
            assert np.array_equal(bank.run(stays), wanted[0])
            runs += 1
            try:
                assert np.array_equal(bank.run(goes), wanted[1])
            except RemoteProtocolError:
                refused += 1
        changing.result()
        looking.result()
    assert bank.held == {1: {0, 1, 2, 3}, 2: {0}}
    assert bank.expert_rows[1].tolist() == [1 + runs, 3 + 3 * runs - refused, 1 + runs - refused, *[0] * 5]
