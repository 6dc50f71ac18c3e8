"""What a model's layers cost in bytes and operations, as they will be executed: the numbers that placement uses."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.config import KvType, Precision
from shoal.executor.precision import executed_bytes
from shoal.models.spec import LayerSpec, ModelSpec
from shoal.models.weights import Weights, matrix_shape
from shoal.placement.cost import LayerCost, Matrices, ModelCost

_ATTENTION = ("q", "k", "v", "o")
_FEED_FORWARD = ("gate", "up", "down")

GRAMMAR_GROWTH = 128 << 20
"""Bytes by which the grammar process may grow beyond its size with the tokenizer."""


def _grammars(spec: ModelSpec) -> int:
    """Bytes of the grammar process: interpreter and libraries, the tokenizer, and the growth allowed for grammars. Measured
    with vocabularies of 32,000 to 152,000 tokens."""
    return (80 << 20) + 600 * spec.vocabulary + GRAMMAR_GROWTH


def _workspace(spec: ModelSpec, step_tokens: int) -> int:
    """Bytes of a step's buffers, and of the process itself (interpreter, libraries)."""

    def widest(layer: LayerSpec) -> int:
        attention, width = layer.attention, layer.feed_forward.width
        return 4 * spec.hidden + 2 * width + 2 * (attention.q_width + 2 * attention.kv_width)

    return 100 * 2**20 + step_tokens * max(widest(layer) for layer in set(spec.layers)) * 5


class _Parts:
    """The costs of a model's parts."""

    def __init__(self, spec: ModelSpec, weights: Weights | None, precision: Precision) -> None:
        self._spec, self._weights, self._precision = spec, weights, precision

    def matrix(self, name: str) -> Matrices:
        n, k = matrix_shape(self._spec, name)
        format = "bf16" if self._weights is None else self._weights.matrix(name).format
        return Matrices(executed_bytes(format, n, k, self._precision, head=name == "head"), n * k)

    def _matrices(self, layer: int, names: Iterable[str]) -> Matrices:
        return sum((self.matrix(f"layers.{layer}.{name}") for name in names), Matrices(0, 0))

    def layer(self, i: int, kv_element: int) -> LayerCost:
        """kv_element: bytes of one number of the keys and values."""
        attention = self._spec.layers[i].attention
        return LayerCost(
            always=self._matrices(i, _ATTENTION) + self._matrices(i, _FEED_FORWARD),
            kv_bytes=attention.kv_bytes(kv_element),
            attention=4 * attention.q_width,
            window=attention.window,
        )


def model_cost(spec: ModelSpec, weights: Weights | None, precision: Precision, kv_type: KvType, step_tokens: int) -> ModelCost:
    """weights: None if only the model's description is here; its matrices then count as bf16 in the file."""
    parts = _Parts(spec, weights, precision)
    return ModelCost(
        layers=tuple(parts.layer(i, 2 if kv_type is KvType.BF16 else 4) for i in range(len(spec.layers))),
        head=parts.matrix("head"),
        activation_bytes=spec.hidden * 4,
        workspace=_workspace(spec, step_tokens),
        last_bytes=_grammars(spec),
    )
