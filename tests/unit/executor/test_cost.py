"""A model's costs are those of what is run: the kernels' memory, the pool's blocks, what each layer's attention sees."""

from __future__ import annotations

import msgspec
import pytest

from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.cost import model_cost
from shoal.executor.kv_pool import block_bytes
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.models.weights import SafetensorsWeights, Weights
from shoal.native import BLOCK_TOKENS
from shoal.placement.cost import ModelCost
from tests.support import tiny

LAYERS = 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    built = tiny.model("qwen3", num_hidden_layers=LAYERS, head_dim=32)
    return SafetensorsWeights(tiny.saved(built, tmp_path_factory.mktemp("qwen3")))


def cost(weights: Weights, precision: Precision = Precision.Q8, kv_type: KvType = KvType.BF16) -> ModelCost:
    return model_cost(weights.spec, weights, precision, kv_type, 512)


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("part", [range(LAYERS), range(1), range(1, LAYERS)])
def test_what_is_held_is_what_the_kernels_hold(weights: Weights, precision: Precision, part: range) -> None:
    shard = Shard(factory(RuntimeName.NATIVE, precision, KvType.BF16, threads=1))
    shard.load(part, weights)
    counted = cost(weights, precision)
    held = sum(layer.held_bytes for layer in counted.layers[part.start : part.stop])
    assert shard.nbytes == held + (counted.head.size if part.stop == LAYERS else 0)


@pytest.mark.parametrize("kv_type", list(KvType))
def test_keys_and_values_take_what_the_pool_takes(weights: Weights, kv_type: KvType) -> None:
    taken = [block_bytes(layer, kv_type) for layer in weights.spec.layers]
    assert [layer.kv_bytes * BLOCK_TOKENS for layer in cost(weights, kv_type=kv_type).layers] == taken


def test_the_cost_says_how_its_numbers_grow_with_rows_and_the_type_of_keys_and_values(weights: Weights) -> None:
    fewer, more = (model_cost(weights.spec, weights, Precision.Q8, KvType.BF16, rows) for rows in (256, 512))
    assert more.workspace - fewer.workspace == 256 * more.row_bytes
    narrow, wide = cost(weights), cost(weights, kv_type=KvType.FP32)
    assert wide.layers[0].kv_bytes / wide.kv_element == narrow.layers[0].kv_bytes / narrow.kv_element


def test_dense_layers_read_all_that_they_hold(weights: Weights) -> None:
    counted = cost(weights)
    assert counted.read_bytes(0, LAYERS, 1) == counted.read_bytes(0, LAYERS, 100) == counted.held_bytes


def test_every_layer_is_described_by_itself(weights: Weights) -> None:
    first = weights.spec.layers[0]
    local = msgspec.structs.replace(first, attention=msgspec.structs.replace(first.attention, window=64))
    wide = msgspec.structs.replace(first, feed_forward=msgspec.structs.replace(first.feed_forward, width=2 * first.feed_forward.width))
    spec = msgspec.structs.replace(weights.spec, layers=(first, local, wide))
    plain, windowed, wider = model_cost(spec, None, Precision.Q8, KvType.BF16, 512).layers
    assert (plain.window, windowed.window, windowed.always) == (0, 64, plain.always)
    assert wider.always.parameters == plain.always.parameters + 3 * spec.hidden * first.feed_forward.width
    assert model_cost(spec, None, Precision.Q8, KvType.BF16, 512).workspace > cost(weights).workspace
