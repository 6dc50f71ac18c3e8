"""GPTQ and AWQ checkpoints: packed here number by number, read by shoal, and multiplied by the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.config import Precision
from shoal.errors import CorruptModel, UnsupportedModel
from shoal.executor.packing import pack
from shoal.executor.precision import executed_bytes
from shoal.models.int4 import Int4
from shoal.models.matrix import StoredMatrix
from shoal.native import kernels

N, K = 48, 256
needs_kernels = pytest.mark.skipif(kernels() is None, reason="the kernels are not compiled")


class Checkpoint:
    """A matrix with codes, zero points and scales, and the weights that they stand for."""

    def __init__(self, group: int, *, symmetric: bool = False, act_order: bool = False, k: int = K) -> None:
        rng = np.random.default_rng(group + 1)
        width = k if group == -1 else group
        groups = -(-k // width)
        self.codes = rng.integers(0, 16, (k, N))
        self.zeros = np.full((groups, N), 8) if symmetric else rng.integers(1, 16, (groups, N))
        self.scales = rng.uniform(0.001, 0.02, (groups, N)).astype(np.float16)
        self.idx = np.arange(k) // width
        if act_order:
            rng.shuffle(self.idx)
        self.weights = np.empty((N, k), np.float32)
        for i in range(k):
            g = self.idx[i]
            self.weights[:, i] = self.scales[g].astype(np.float32) * (self.codes[i] - self.zeros[g])

    def gptq(self, zero_offset: int = 1) -> dict[str, NDArray[Any]]:
        return {
            "qweight": packed(self.codes.T).T,
            "qzeros": packed(self.zeros - zero_offset),
            "scales": self.scales,
            "g_idx": self.idx.astype(np.int32),
        }

    def awq(self) -> dict[str, NDArray[Any]]:
        return {"qweight": packed(interleaved(self.codes)), "qzeros": packed(interleaved(self.zeros)), "scales": self.scales}


def packed(values: NDArray[Any]) -> NDArray[np.int32]:
    """Eight neighbours of a row in a number, the first in the lowest bits."""
    rows, columns = values.shape
    out = np.zeros((rows, columns // 8), np.uint32)
    for i in range(columns):
        out[:, i // 8] |= values[:, i].astype(np.uint32) << np.uint32(4 * (i % 8))
    return out.view(np.int32)


def interleaved(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(len(values), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(values.shape)


def config(method: str, group: int = 128, **more: Any) -> dict[str, Any]:
    return {"quant_method": method, "bits": 4, "group_size": group, **more}


def read(method: str, tensors: dict[str, NDArray[Any]], group: int = 128, **more: Any) -> StoredMatrix:
    return Int4.of(config(method, group, **more), "m").matrix("m", "q_proj", **tensors)


def multiplied(stored: StoredMatrix) -> NDArray[np.float64]:
    """The weights as the kernels multiply them."""
    module: Any = kernels()
    stage, norm = module.Stage(stored.k, 1), module.Norm(np.ones(stored.k, np.float32), 0.0)
    head = module.Head(norm, module.Linear(pack(stored, Precision.AUTO)))
    out = np.empty((stored.k, stored.n), np.float32)
    stage.logits(np.eye(stored.k, dtype=np.float32), head, np.arange(stored.k, dtype=np.int32), out)
    return out.T.astype(np.float64) / np.sqrt(stored.k)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("method", ["gptq", "gptq_v2", "awq"])
def test_matrices_run_as_they_are_stored(method: str, group: int, symmetric: bool) -> None:
    made = Checkpoint(group, symmetric=symmetric)
    if method == "awq":
        stored = read("awq", made.awq(), group, version="gemm", zero_point=True)
    else:
        offset = 1 if method == "gptq" else 0
        stored = read("gptq", made.gptq(offset), group, checkpoint_format=method, sym=symmetric, desc_act=False)
    assert stored.format == f"{'s' if symmetric else 'u'}4g{K if group == -1 else group}"
    assert np.array_equal(stored.floats(), made.weights)
    assert np.array_equal(stored.pick([3, 1]), made.weights[[3, 1]])
    if kernels() is not None:
        assert np.all(np.abs(multiplied(stored) - made.weights) <= 1e-6 * np.abs(made.weights))
        assert pack(stored, Precision.AUTO).nbytes == executed_bytes(stored.format, N, K, Precision.AUTO)


def test_a_zero_point_of_16_is_one() -> None:
    made = Checkpoint(64)
    made.zeros[0] = 16
    made.weights[:, :64] = (made.scales[0].astype(np.float32) * (made.codes[:64] - 16)).T
    assert np.array_equal(read("gptq", made.gptq(), 64).floats(), made.weights)


def test_checkpoints_without_a_g_idx() -> None:
    made = Checkpoint(128)
    tensors = {name: tensor for name, tensor in made.gptq().items() if name != "g_idx"}
    assert np.array_equal(read("gptq", tensors).floats(), made.weights)


@needs_kernels
def test_act_order_leaves_each_input_where_it_is() -> None:
    made = Checkpoint(64, act_order=True)
    stored = read("gptq", made.gptq(), 64, desc_act=True)
    assert stored.format == "f32"
    assert np.array_equal(stored.floats(), made.weights)
    peaks = np.abs(made.weights).reshape(N, -1, 32).max(-1).repeat(32, axis=1)
    assert np.all(np.abs(multiplied(stored) - made.weights) <= 0.501 * peaks / 127 + 127 * 2.0**-25)


@pytest.mark.parametrize("case", ["odd group", "last group", "wide scales"])
def test_what_the_kernels_have_no_blocks_for_becomes_floats(case: str) -> None:
    made = Checkpoint({"odd group": 16, "last group": 96, "wide scales": 64}[case])
    tensors = made.gptq()
    if case == "wide scales":
        tensors["scales"] = made.scales.astype(np.float32) * np.float32(1e-6)
        made.weights *= np.float32(1e-6)
    stored = read("gptq", tensors, {"odd group": 16, "last group": 96, "wide scales": 64}[case])
    assert stored.format == "f32"
    np.testing.assert_allclose(stored.floats(), made.weights, rtol=1e-6)


def broken(what: str) -> dict[str, NDArray[Any]]:
    tensors = Checkpoint(128).gptq()
    if what == "a cut qweight":
        tensors["qweight"] = tensors["qweight"][:-16]
    elif what == "scales of other groups":
        tensors["scales"] = np.repeat(tensors["scales"], 2, axis=0)
    elif what == "too few zero points":
        tensors["qzeros"] = tensors["qzeros"][:, :-1]
    elif what == "a group that is not there":
        tensors["g_idx"][5] = 2
    elif what == "a negative group":
        tensors["g_idx"][5] = -1
    elif what == "a short g_idx":
        tensors["g_idx"] = tensors["g_idx"][:-1]
    elif what == "zero points of another type":
        tensors["qzeros"] = tensors["qzeros"].astype(np.float32)
    elif what == "a flat qweight":
        tensors["qweight"] = tensors["qweight"].reshape(-1)
    else:
        tensors["qweight"] = tensors["qweight"][:0]
    return tensors


@pytest.mark.parametrize(
    "what",
    [
        "a cut qweight",
        "scales of other groups",
        "too few zero points",
        "a group that is not there",
        "a negative group",
        "a short g_idx",
        "zero points of another type",
        "a flat qweight",
        "nothing",
    ],
)
def test_tensors_that_do_not_fit_are_refused(what: str) -> None:
    with pytest.raises(CorruptModel, match="q_proj"):
        read("gptq", broken(what))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"quant_method": "bitsandbytes"}, "quantisation bitsandbytes is not supported; gptq and awq are"),
        ({"quant_method": None}, "quantisation None"),
        ({"bits": 8}, "bits 8, which is not supported; 4 is"),
        ({"bits": 3}, "bits 3"),
        ({"group_size": 0}, "groups of 0"),
        ({"group_size": "all"}, "groups of all"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format marlin, which is not supported; gptq or gptq_v2 is"),
        ({"dynamic": {"-:lm_head": {}}}, "dynamic"),
        ({"quant_method": "awq", "version": "gemv"}, "version gemv"),
        ({"quant_method": "awq", "zero_point": False}, "zero_point False"),
        ({"quant_method": "awq", "w_bit": 8}, "w_bit 8"),
    ],
)
def test_other_quantisations_are_refused_by_name(more: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedModel, match=match):
        Int4.of({**config("gptq"), **more}, "m")
