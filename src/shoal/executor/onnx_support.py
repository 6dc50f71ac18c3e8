"""Which models ONNX segments can express."""

from __future__ import annotations

from shoal.models.spec import Dense, GroupedQuery, LayerSpec, ModelSpec


def lacking(spec: ModelSpec) -> str:
    """What of a model these runtimes cannot run; '' if they can run all of it."""
    if spec.norm != "rms":
        return "layer norms"
    return next((what for layer in dict.fromkeys(spec.layers) if (what := _lacking(layer))), "")


def _lacking(layer: LayerSpec) -> str:
    attention, feed_forward = layer.attention, layer.feed_forward
    if not isinstance(attention, GroupedQuery):
        return "latent attention"
    if not isinstance(feed_forward, Dense):
        return "experts"
    if feed_forward.activation != "silu":
        return f"the activation {feed_forward.activation}"
    if layer.norms != "before" or layer.parallel or layer.residual_scale != 1:
        return "norms or sums elsewhere than before attention and MLP"
    if attention.rope is None or attention.rope.dims or attention.value_dim or attention.cap or attention.clip or attention.sinks:
        return "attention without rotation or with partial rotation, caps, bounds, sinks or values of another width than keys"
    if attention.qk_norm == "full":
        return "norms over all heads"
    return ""
