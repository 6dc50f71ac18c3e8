"""gpt-oss: attention sinks, a window in every other layer, biases everywhere, a clamped activation; experts mostly in MXFP4."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import FUSED_GATE_UP, TensorPiece, gguf, hugging_face
from shoal.models.families.windows import by_type
from shoal.models.spec import Experts, LayerSpec, ModelSpec, Routing


def _routing(chosen: int) -> Routing:
    return Routing(chosen, "softmax of the chosen")


def _from_config(config: ConfigJson) -> ModelSpec:
    if (float(config.get("swiglu_limit", 7.0)), float(config.get("swiglu_alpha", 1.702))) != (7.0, 1.702):
        raise config.unsupported("another limit or slope of the activation than 7 and 1.702 is not supported")
    routing = _routing(config.whole("num_experts_per_tok"))
    experts = Experts(config.experts_count(), config.whole("intermediate_size"), routing, "clamped")
    windows = by_type(config) or [0 if i % 2 else config.window for i in range(config.layers)]
    layers = config.windowed(windows, lambda window: LayerSpec(config.grouped_query(window=window, sinks=True), experts))
    return config.model(layers, eps=float(config.get("rms_norm_eps", 1e-5)))


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    experts = meta.experts(_routing(meta.chosen), activation="clamped")
    rope = meta.rope(truncate=False)  # which the file cannot say
    layers = [LayerSpec(meta.grouped_query(rope=rope, window=0 if i % 2 else meta.window, sinks=True), experts) for i in range(meta.layers)]
    return meta.model(layers)


def _experts(tensor: str, rows: tuple[str, ...] = ()) -> tuple[TensorPiece, ...]:
    alike = {"rows": rows, "alternating": bool(rows), "stacked": True, "bias": "_bias"}
    return (
        TensorPiece(tensor, **alike, transposed=True, suffix=""),  # pyright: ignore[reportArgumentType]
        TensorPiece(tensor, **alike, suffix="_blocks"),  # pyright: ignore[reportArgumentType]
    )


_NAMES = hugging_face(
    sinks=TensorPiece("self_attn.sinks", suffix=""),
    router="mlp.router",
    experts__gate=_experts("mlp.experts.gate_up_proj", FUSED_GATE_UP),
    experts__up=_experts("mlp.experts.gate_up_proj", FUSED_GATE_UP),
    experts__down=_experts("mlp.experts.down_proj"),
)
FAMILY = Family(
    "gpt_oss",
    "gpt-oss",
    _from_config,
    _from_metadata,
    "gpt-oss",
    biases=("q", "k", "v", "o", "router", "gate", "up", "down"),
    quantisations=("mxfp4",),
    safetensors=Stored(_NAMES),
    gguf=Stored(gguf(sinks="attn_sinks")),
)
