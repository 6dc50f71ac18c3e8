"""Which models ONNX segments can express."""

from __future__ import annotations

from shoal.errors import UnsupportedModel
from shoal.models.spec import Dense, GroupedQuery, LayerSpec, ModelSpec


def check_expressible(spec: ModelSpec, runtime: str, model: str = "this model") -> None:
    """Raises UnsupportedModel. runtime, model: what its message calls them."""
    if what := lacking(spec):
        raise UnsupportedModel(f"the runtime {runtime} cannot run {model}: it has {what}; use --runtime native")


def lacking(spec: ModelSpec) -> str:
    """What a model has that these runtimes cannot run; '' if they can run all of it."""
    if spec.norm != "rms":
        return "layer norms"
    return next((what for layer in dict.fromkeys(spec.layers) if (what := _lacking(layer))), "")


def _lacking(layer: LayerSpec) -> str:
    attention, feed_forward = layer.attention, layer.feed_forward
    if not isinstance(attention, GroupedQuery):
        return "latent attention"
    if not isinstance(feed_forward, Dense):
        return "experts (Mixture-of-Experts)"
    if feed_forward.activation != "silu":
        return f"the activation {feed_forward.activation}"
    if layer.norms != "before" or layer.parallel or layer.residual_scale != 1:
        return "norms or sums elsewhere than before attention and MLP"
    if attention.rope is None:
        return "attention without rotation"
    had = {
        "attention with partial rotation": attention.rope.dims,
        "values of another width than keys": attention.value_dim,
        "attention with a soft cap": attention.cap,
        "bounds on queries, keys and values": attention.clip,
        "attention sinks": attention.sinks,
        "norms over all heads": attention.qk_norm == "full",
    }
    return next((what for what, has in had.items() if has), "")
