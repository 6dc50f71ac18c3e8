"""What a model's layers cost in bytes and operations, as they will be executed: the numbers that placement uses."""

from __future__ import annotations

from shoal.config import KvType, Precision
from shoal.executor.precision import executed_bytes
from shoal.models.spec import ModelSpec
from shoal.models.weights import MATRICES, Weights, matrix_shape
from shoal.placement.profile import ModelCost

GRAMMAR_GROWTH = 128 << 20
"""Bytes by which the grammar process may grow beyond its size with the tokenizer."""


def _grammars(spec: ModelSpec) -> int:
    """Bytes of the grammar process: interpreter and libraries, the tokenizer, and the growth allowed for grammars. Measured
    with vocabularies of 32,000 to 152,000 tokens."""
    return (80 << 20) + 600 * spec.vocabulary + GRAMMAR_GROWTH


def _workspace(spec: ModelSpec, step_tokens: int) -> int:
    """Bytes of a step's buffers, and of the process itself (interpreter, libraries)."""
    widest = max(_widest(layer, spec.hidden) for layer in set(spec.layers))
    return 100 * 2**20 + step_tokens * widest * 5


def model_cost(spec: ModelSpec, weights: Weights | None, precision: Precision, kv_type: KvType, step_tokens: int) -> ModelCost:
    """weights: None if only the model's description is here; its matrices then count as bf16 in the file."""

    def size(name: str) -> int:
        n, k = matrix_shape(spec, name)
        format = "bf16" if weights is None else weights.matrix(name).format
        return executed_bytes(format, n, k, precision, head=name == "head")

    def parameters(name: str) -> int:
        n, k = matrix_shape(spec, name)
        return n * k

    return ModelCost(
        layer_bytes=tuple(sum(size(f"layers.{i}.{m}") for m in MATRICES) for i in range(len(spec.layers))),
        head_bytes=size("head"),
        kv_bytes=spec.common.attention.kv_bytes(2 if kv_type is KvType.BF16 else 4),
        layer_parameters=sum(parameters(f"layers.0.{m}") for m in MATRICES),
        head_parameters=parameters("head"),
        activation_bytes=spec.hidden * 4,
        workspace=_workspace(spec, step_tokens),
        attention=4 * spec.common.attention.q_width,
        last_bytes=_grammars(spec),
    )
