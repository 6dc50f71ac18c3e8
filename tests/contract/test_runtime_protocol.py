"""What the executor takes for granted of every runtime, the toy's among them: see executor/base.py, Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from shoal.config import KvType, Precision, RuntimeName
from shoal.errors import LocalProtocolError
from shoal.executor.base import Angles, BlockPart, Runtime, StageBatch, WeightBlock
from shoal.executor.runtimes import factory
from shoal.executor.store import WeightStore, blocks_of
from shoal.models.weights import SafetensorsWeights, Weights
from shoal.native import BLOCK_TOKENS
from shoal.testing import toy
from tests.support import tiny, tiny_families

LAYERS, BLOCKS = 3, 6

pytestmark = pytest.mark.slow


@dataclass
class Made:
    runtime: Runtime
    weights: Weights
    store: WeightStore

    def forward(self, rows: np.ndarray, tables: list[list[int]], positions: list[int], layers: range = range(LAYERS)) -> np.ndarray:
        """rows: [sequences, rows of each, hidden]"""
        sequences, count = len(tables), len(rows) // len(tables)
        starts = np.arange(0, (sequences + 1) * count, count, dtype=np.int32)
        at = np.concatenate([np.arange(first, first + count) for first in positions])
        batch = StageBatch(
            starts, np.array(positions, np.int32), np.array(tables, np.int32), np.zeros(len(rows), np.int32), np.zeros(0, np.int32), ()
        )
        angles: list[Angles] = []
        for _, width in self.weights.spec.rotations:
            turn = at[:, None].astype(np.float32) / np.float32(100) ** (np.arange(width // 2, dtype=np.float32) / width)
            angles.append((np.cos(turn), np.sin(turn)))
        return np.array(self.runtime.forward(rows.copy(), batch, angles, layers, self.store))

    def rows(self, count: int, seed: int = 0) -> np.ndarray:
        values = np.random.default_rng(seed).integers(-20, 20, (count, self.weights.spec.hidden))
        return np.abs(values).astype(np.float32) if self.runtime.name == "toy" else values.astype(np.float32) / 7


Make = Callable[[], Made]


def _made(runtime: Runtime, weights: Weights) -> Made:
    made = Made(runtime, weights, WeightStore())
    for block in blocks_of(range(LAYERS), LAYERS):
        made.store.put(block, runtime.pack(weights, block))
    runtime.open(BLOCKS)
    return made


@pytest.fixture(scope="module", params=["toy", "native dense", "native experts", "native latent", "onnxruntime", "openvino"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A runtime with all of a model of three layers, and empty keys and values."""
    if request.param == "toy":
        weights: Weights = toy.ToyWeights(LAYERS)
        return lambda: _made(toy.make_runtime(weights, 0), weights)
    name, _, kind = request.param.partition(" ")
    built = {"experts": lambda: tiny_families.model("qwen2 moe"), "latent": lambda: tiny_families.model("deepseek v3")}
    model = built.get(kind, lambda: tiny.model("qwen3"))()
    read = SafetensorsWeights(tiny.saved(model, tmp_path_factory.mktemp("model")))
    maker = factory(RuntimeName(name), Precision.FP32, KvType.FP32, 1)
    return lambda: _made(maker(read, 0), read)


def test_layers_one_by_one_are_all_at_once(make: Make) -> None:
    whole, parts = make(), make()
    rows = whole.rows(5)
    out = whole.forward(rows, [[4, 1]], [0])
    for layer in range(LAYERS):
        rows = parts.forward(rows, [[4, 1]], [0], range(layer, layer + 1))
    assert np.array_equal(out, rows)


def test_rows_in_chunks_are_all_at_once_but_for_rounding(make: Make) -> None:
    whole, parts = make(), make()
    rows = whole.rows(40)
    out = whole.forward(rows, [[4, 1]], [0])
    cut = [parts.forward(rows[:33], [[4, 1]], [0]), parts.forward(rows[33:], [[4, 1]], [33])]
    np.testing.assert_allclose(np.concatenate(cut), out, atol=1e-4, rtol=1e-4)


def test_rows_that_are_computed_again_replace_what_was_there(make: Make) -> None:
    """As after drafts that were wrong."""
    one, clean = make(), make()
    rows, wrong = one.rows(40), one.rows(40, seed=1)
    for made in (one, clean):
        made.forward(rows[:30], [[4, 1]], [0])
    one.forward(np.concatenate([rows[30:31], wrong[31:36]]), [[4, 1]], [30])
    assert np.array_equal(one.forward(rows[30:], [[4, 1]], [30]), clean.forward(rows[30:], [[4, 1]], [30]))


def test_sequences_do_not_see_each_other(make: Make) -> None:
    both, alone = make(), make()
    rows = both.rows(6)
    out = both.forward(rows, [[0], [5]], [0, 0])
    np.testing.assert_allclose(out[:3], alone.forward(rows[:3], [[0]], [0]), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(out[3:], alone.forward(rows[3:], [[2]], [0]), atol=1e-4, rtol=1e-4)


def test_copied_blocks_hold_what_the_others_hold(make: Make) -> None:
    one = make()
    rows = one.rows(BLOCK_TOKENS + 1)
    one.forward(rows[:-1], [[3]], [0])
    one.runtime.copy([(3, 0)])
    of_copy = one.forward(rows[-1:], [[0, 2]], [BLOCK_TOKENS])
    assert np.array_equal(of_copy, one.forward(rows[-1:], [[3, 1]], [BLOCK_TOKENS]))
    assert not np.array_equal(of_copy, one.forward(rows[-1:], [[5, 4]], [BLOCK_TOKENS]))


def test_what_is_kept_stays_and_all_else_is_forgotten(make: Make) -> None:
    one = make()
    rows = one.rows(BLOCK_TOKENS + 1)
    one.forward(rows[:-1], [[3]], [0])
    before = one.forward(rows[-1:], [[3, 1]], [BLOCK_TOKENS], range(1, 2))
    one.runtime.keep(range(1, 2))
    assert np.array_equal(before, one.forward(rows[-1:], [[3, 1]], [BLOCK_TOKENS], range(1, 2)))
    kept = one.forward(rows[-1:], [[3, 1]], [BLOCK_TOKENS], range(2, 3))
    one.runtime.open(BLOCKS)
    fresh = one.forward(rows[-1:], [[3, 1]], [BLOCK_TOKENS], range(2, 3))
    assert np.array_equal(kept, fresh)
    assert not np.array_equal(before, one.forward(rows[-1:], [[3, 1]], [BLOCK_TOKENS], range(1, 2)))


def test_weights_that_are_not_there_are_named(make: Make) -> None:
    one = make()
    one.store.keep([WeightBlock(0, part) for part in (BlockPart.ATTENTION, BlockPart.FEED_FORWARD)])
    one.forward(one.rows(1), [[0]], [0], range(1))
    with pytest.raises(LocalProtocolError, match="layer 1"):
        one.forward(one.rows(1), [[0]], [0])


def test_logits_are_of_the_rows_that_are_picked(make: Make) -> None:
    one = make()
    hidden = one.forward(one.rows(5), [[0]], [0])
    every = one.runtime.logits(hidden, np.arange(5, dtype=np.int32), one.store)
    assert every.shape == (5, one.weights.spec.vocabulary)
    picked = one.runtime.logits(hidden, np.array([4, 1], np.int32), one.store)
    np.testing.assert_allclose(picked, every[[4, 1]], atol=1e-5, rtol=1e-5)
    assert one.runtime.normed(hidden, one.store).shape == hidden.shape


def test_bytes_are_those_of_its_blocks(make: Make) -> None:
    one = make()
    assert one.store.nbytes > 0
    one.store.keep(())
    assert one.store.nbytes == 0
