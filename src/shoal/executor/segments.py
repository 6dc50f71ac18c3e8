"""A block as ONNX graphs, which end where the attention over the cache begins.

    before    residual                  → norm, QKV           → qkv
    after     attention out, residual   → O, add              → residual
    mlp       residual                  → norm, MLP, add      → residual
    head      residual                  → norm, output head   → logits

Rows are flat, [rows, width], so ragged batches need no padding. Quantised matrices are com.microsoft's MatMulNBits with blocks
of 32 and accuracy level 4 (activations rounded to 8 bits per block); GGUF's Q4_0 and Q8_0 blocks are converted exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from shoal.config import Precision
from shoal.executor.base import BlockPart, Floats, WeightBlock
from shoal.executor.packing import required
from shoal.executor.precision import executed
from shoal.models.matrix import StoredMatrix
from shoal.models.spec import GroupedQuery, ModelSpec
from shoal.models.weights import Weights

_OPSET, _BLOCK = 21, 32


def quantised(stored: list[StoredMatrix], bits: int) -> tuple[NDArray[np.uint8], Floats]:
    """Rows of some matrices in MatMulNBits' layout: codes u8 [n, k/32, bytes], scales [n, k/32]; the zero is 2^(bits-1)."""
    parts = [_blocks(matrix, bits) for matrix in stored]
    codes = np.concatenate([codes for codes, _ in parts])
    scales = np.concatenate([scales for _, scales in parts])
    if bits == 4:
        codes = (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)
    return codes, scales


def _blocks(stored: StoredMatrix, bits: int) -> tuple[NDArray[np.uint8], Floats]:
    """Codes u8 [n, k/32, 32] and scales."""
    raw = stored.rows if stored.order is None else stored.rows[stored.order]
    n = len(raw)
    if (stored.format, bits) in (("q8_0", 8), ("q4_0", 4)):
        cells = raw.reshape(n, -1, 34 if bits == 8 else 18)
        scales = np.ascontiguousarray(cells[..., :2]).view(np.float16)[..., 0].astype(np.float32)
        if bits == 8:
            return (cells[..., 2:] ^ 0x80).astype(np.uint8), scales
        return np.concatenate([cells[..., 2:] & 15, cells[..., 2:] >> 4], axis=-1, dtype=np.uint8), scales
    x = stored.floats().reshape(n, -1, _BLOCK)
    peak = np.abs(x).max(axis=-1)
    if bits == 4:  # the extreme value gets the code that reaches furthest
        extreme = np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], -1)[..., 0]
        scales, low, high, zero = (extreme / -8).astype(np.float32), -8, 7, 8
    else:
        scales, low, high, zero = (peak / 127).astype(np.float32), -127, 127, 128
    safe = np.where(scales == 0, np.float32(1), scales)
    return (np.clip(np.rint(x / safe[..., None]), low, high) + zero).astype(np.uint8), scales


class _Graph:
    """One segment under construction."""

    def __init__(self, spec: ModelSpec, precision: Precision) -> None:
        self.spec = spec
        self._precision = precision
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def norm(self, x: str, weight: Floats, name: str) -> str:
        return self.node(
            "SimplifiedLayerNormalization", [x, self.constant(f"{name}.weight", weight)], name, axis=-1, epsilon=self.spec.eps, stash_type=1
        )

    def product(self, x: str, weights: Weights, names: list[str], output: str) -> str:
        """x times some matrices, side by side, plus their biases."""
        stored = [weights.matrix(name) for name in names]
        n, k = sum(matrix.n for matrix in stored), stored[0].k
        wanted = {executed(m.format, m.k, self._precision, head=name == "head") for m, name in zip(stored, names, strict=True)}
        # Formats with minimums have no exact counterpart here; 8 bits preserve them, symmetric 4 bits would not.
        exact_q4 = wanted == {"q4"} and (self._precision is Precision.Q4 or all(m.format == "q4_0" for m in stored))
        biases = [weights.vector(f"{name}.bias") for name in names]
        biased = any(b is not None for b in biases)
        target = f"{output}.product" if biased else output
        if "f32" in wanted:
            both = np.concatenate([m.floats() for m in stored])
            self.node("MatMul", [x, self.constant(f"{output}.weight", both.T)], target)
        else:
            bits = 4 if exact_q4 else 8
            codes, scales = quantised(stored, bits)
            inputs = [x, self.constant(f"{output}.codes", codes), self.constant(f"{output}.scales", scales.reshape(-1))]
            self.node("MatMulNBits", inputs, target, "com.microsoft", K=k, N=n, bits=bits, block_size=_BLOCK, accuracy_level=4)
        if biased:
            whole = np.concatenate([np.zeros(m.n, np.float32) if b is None else b for b, m in zip(biases, stored, strict=True)])
            self.node("Add", [target, self.constant(f"{output}.bias", whole)], output)
        return output

    def mlp(self, x: str, weights: Weights, layer: str) -> str:
        gate = self.product(x, weights, [f"{layer}gate"], "gate")
        up = self.product(x, weights, [f"{layer}up"], "up")
        silu = self.node("Mul", [gate, self.node("Sigmoid", [gate], "sigmoid")], "silu")
        return self.product(self.node("Mul", [silu, up], "gated"), weights, [f"{layer}down"], "down")

    def model(self, name: str, inputs: dict[str, int], outputs: dict[str, int]) -> onnx.ModelProto:
        def values(widths: dict[str, int]) -> list[Any]:
            return [helper.make_tensor_value_info(v, TensorProto.FLOAT, ["rows", width]) for v, width in widths.items()]

        graph = helper.make_graph(self._nodes, name, values(inputs), values(outputs), self._weights)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def segments(weights: Weights, block: WeightBlock, precision: Precision) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The graphs of a block by name, one at a time."""
    spec, name = weights.spec, f"layers.{block.layer}."
    match block.part:
        case BlockPart.ATTENTION:
            attention = spec.layers[block.layer].attention
            assert isinstance(attention, GroupedQuery)
            graph = _Graph(spec, precision)
            normed = graph.norm("residual", required(weights, f"{name}attention_norm"), "attention_norm")
            graph.product(normed, weights, [f"{name}q", f"{name}k", f"{name}v"], "qkv")
            width = attention.q_heads * attention.values
            yield "before", graph.model("before", {"residual": spec.hidden}, {"qkv": width + attention.kv_values})
            graph = _Graph(spec, precision)
            graph.node("Add", ["residual", graph.product("attended", weights, [f"{name}o"], "mixed")], "out")
            yield "after", graph.model("after", {"attended": width, "residual": spec.hidden}, {"out": spec.hidden})
        case BlockPart.FEED_FORWARD:
            graph = _Graph(spec, precision)
            down = graph.mlp(graph.norm("residual", required(weights, f"{name}mlp_norm"), "mlp_norm"), weights, name)
            graph.node("Add", ["residual", down], "out")
            yield "mlp", graph.model("mlp", {"residual": spec.hidden}, {"out": spec.hidden})
        case BlockPart.HEAD:
            graph = _Graph(spec, precision)
            graph.product(graph.norm("residual", required(weights, "norm"), "norm"), weights, ["head"], "logits")
            yield "head", graph.model("head", {"residual": spec.hidden}, {"logits": spec.vocabulary})
