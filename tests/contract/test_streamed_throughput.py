"""Steps of many rows over streamed weights: the bits of held ones, with each layer's experts read before it is reached."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from shoal.config import KvType, Precision
from shoal.executor.base import Floats, Leases, StageBatch
from shoal.executor.native_runtime import NativeRuntime
from shoal.executor.packed_layers import PackedLayers
from shoal.executor.packing import StoredTensors
from shoal.executor.store import WeightStore, blocks_of
from shoal.executor.streamed_store import StreamedStore
from shoal.models.weights import SafetensorsWeights, Weights
from shoal.native import kernels
from shoal.placement.division import least
from shoal.placement.timeline import utilisation
from tests.support import tiny, tiny_families

pytestmark = pytest.mark.skipif(kernels() is None, reason="the kernels are not compiled here")

LAYERS, ROWS, STEPS, PRECISION = 5, 48, 6, Precision.Q4
FAMILIES = ["mixtral", "qwen2 moe"]  # the second has a shared expert


@pytest.fixture(scope="module", params=FAMILIES)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    built = tiny_families.model(request.param, num_hidden_layers=LAYERS)
    return SafetensorsWeights(tiny.saved(built, tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def packed(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> PackedLayers:
    packed = PackedLayers(tmp_path_factory.mktemp("packed"), weights.spec, StoredTensors(weights, PRECISION))
    packed.make(list(range(LAYERS + 1)))
    return packed


def steps(weights: Weights, store: Leases, runtime: NativeRuntime) -> Iterator[Floats]:
    """The logits of steps in which each of the rows is a sequence of its own."""
    rng = np.random.default_rng(5)
    runtime.open(ROWS)
    rows = np.arange(ROWS, dtype=np.int32)
    for step in range(STEPS):
        batch = StageBatch(np.arange(ROWS + 1, dtype=np.int32), np.full(ROWS, step, np.int32), rows[:, None], rows, rows, ())
        angles = [
            (np.ones((ROWS, width // 2), np.float32), np.zeros((ROWS, width // 2), np.float32)) for _, width in weights.spec.rotations
        ]
        hidden = rng.standard_normal((ROWS, weights.spec.hidden)).astype(np.float32)
        yield runtime.logits(runtime.forward(hidden, batch, angles, range(LAYERS), store), rows, store)


def runtime_for(weights: Weights) -> NativeRuntime:
    return NativeRuntime(weights.spec, kv_type=KvType.BF16, precision=PRECISION, threads=2)


@pytest.fixture(scope="module")
def held(weights: Weights) -> list[Floats]:
    runtime, store = runtime_for(weights), WeightStore()
    for block in blocks_of(range(LAYERS), LAYERS):
        store.put(block, runtime.pack(weights, block))
    return list(steps(weights, store, runtime))


@pytest.mark.parametrize("percent", [0, 10, 30, 60, 90, 100])
def test_the_bits_are_those_of_weights_that_are_held(weights: Weights, packed: PackedLayers, held: list[Floats], percent: int):
    sizes = packed.sizes(range(LAYERS))
    store = StreamedStore(packed, range(LAYERS), least(sizes) + (sizes.total - least(sizes)) * percent // 100)
    store.fill()
    for ours, theirs in zip(steps(weights, store, runtime_for(weights)), held, strict=True):
        assert np.array_equal(ours, theirs)
    if percent >= 60:
        assert (store.tally.guessed > 0) == (percent < 100)
    assert {span.what for span in store.activity.spans} >= {"attention", "experts", "head"}
    assert set(utilisation(store.activity.spans)) == {"disk", "processor"}
    store.close()
