"""What a model's layers cost in bytes and operations, as they will be executed: the numbers that placement uses."""

from __future__ import annotations

from shoal.config import KvType, Precision
from shoal.executor.kv_pool import token_bytes
from shoal.executor.precision import UNROUNDED, executed_bytes
from shoal.models.spec import Experts, Latent, LayerSpec, ModelSpec, Shapes
from shoal.models.weights import Weights
from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.workload import KV_ELEMENT

GRAMMAR_GROWTH = 128 << 20
"""Bytes by which the grammar process may grow beyond its size with the tokenizer."""


def _grammars(spec: ModelSpec) -> int:
    """Bytes of the grammar process: interpreter and libraries, the tokenizer, and the growth allowed for grammars. Measured
    with vocabularies of 32,000 to 152,000 tokens."""
    return (80 << 20) + 600 * spec.vocabulary + GRAMMAR_GROWTH


_PROCESS = 100 << 20
"""Bytes of the process itself: interpreter and libraries."""


def _row_bytes(spec: ModelSpec) -> int:
    """Bytes of a step's buffers for each of its rows."""
    return max(_row(layer, spec.hidden) for layer in set(spec.layers)) * 5


def _row(layer: LayerSpec, hidden: int) -> int:
    """Values of one row that are in memory at once, of which most are there as floats and rounded to bytes."""
    attention, feed_forward = layer.attention, layer.feed_forward
    if isinstance(attention, Latent):
        heads = attention.q_heads * (2 * attention.kv_rank + attention.nope_dim + 2 * attention.rope_dim)
    else:
        heads = 2 * attention.q_heads * attention.head_dim + 2 * attention.kv_values
    if isinstance(feed_forward, Experts):
        width = feed_forward.count + feed_forward.routing.chosen * feed_forward.width + feed_forward.shared
    else:
        width = feed_forward.width
    return 4 * hidden + 2 * width + heads


class _Parts:
    """The costs of a model's parts."""

    def __init__(self, spec: ModelSpec, weights: Weights | None, precision: Precision) -> None:
        self._spec, self._weights, self._precision = spec, weights, precision

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrices:
        n, k = shape
        format = "bf16" if self._weights is None else self._weights.format(name)
        precision = Precision.FP32 if name.endswith(UNROUNDED) else self._precision
        return Matrices(executed_bytes(format, n, k, precision, head=name == "head"), n * k)

    def matrices(self, layer: int, shapes: Shapes) -> Matrices:
        return sum((self.matrix(f"layers.{layer}.{name}", shape) for name, shape in shapes.items()), Matrices(0, 0))

    def layer(self, i: int, kv_type: KvType) -> LayerCost:
        hidden, layer = self._spec.hidden, self._spec.layers[i]
        attention, feed_forward = layer.attention, layer.feed_forward
        experts: ExpertsCost | None = None
        if isinstance(feed_forward, Experts):
            always = feed_forward.always(hidden)
            experts = ExpertsCost(feed_forward.count, feed_forward.routing.chosen, self.matrices(i, feed_forward.expert(hidden, 0)))
        else:
            always = feed_forward.matrices(hidden)
        return LayerCost(
            always=self.matrices(i, attention.matrices(hidden)) + self.matrices(i, always),
            kv_bytes=token_bytes(attention.kv_vectors, kv_type),
            attention=attention.operations,
            window=attention.window,
            experts=experts,
            sharing=attention.q_heads if isinstance(attention, Latent) else attention.q_heads // attention.kv_heads,
        )


def expert_bytes(spec: ModelSpec, weights: Weights, precision: Precision, layer: int) -> int:
    """Of one expert of a layer, which has some."""
    kind = spec.layers[layer].feed_forward
    assert isinstance(kind, Experts)
    return _Parts(spec, weights, precision).matrices(layer, kind.expert(spec.hidden, 0)).size


def attention_costs(spec: ModelSpec, weights: Weights | None, precision: Precision) -> tuple[Matrices, ...]:
    """Of each layer's attention alone; the rest of its `LayerCost.always` is the feed-forward part, or the router and shared experts."""
    parts = _Parts(spec, weights, precision)
    return tuple(parts.matrices(i, layer.attention.matrices(spec.hidden)) for i, layer in enumerate(spec.layers))


def model_cost(spec: ModelSpec, weights: Weights | None, precision: Precision, kv_type: KvType, step_tokens: int) -> ModelCost:
    """weights: None if only the model's description is here; its matrices then count as bf16 in the file."""
    parts, row_bytes = _Parts(spec, weights, precision), _row_bytes(spec)
    return ModelCost(
        layers=tuple(parts.layer(i, kv_type) for i in range(len(spec.layers))),
        head=parts.matrix("head", (spec.vocabulary, spec.hidden)),
        activation_bytes=spec.hidden * 4,
        workspace=_PROCESS + step_tokens * row_bytes,
        last_bytes=_grammars(spec),
        row_bytes=row_bytes,
        kv_element=KV_ELEMENT[kv_type],
    )
