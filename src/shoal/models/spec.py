"""The description of a model's layers, read from GGUF metadata or a Hugging Face config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from shoal.errors import CorruptModel, UnsupportedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding. `kind` names the scaling; its fields have the meanings of transformers' modeling_rope_utils."""

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3", "yarn", "factors"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] = ()
    """Divisors of the frequencies, one per pair (GGUF's rope_freqs.weight, in which it stores llama3)."""

    def check(self, head_dim: int, where: object) -> None:
        """Refuses numbers that give no frequencies. Raises CorruptModel."""
        numbers = [self.theta, self.factor, self.low_freq_factor, self.high_freq_factor, self.beta_fast, self.beta_slow, *self.factors]
        if self.attention_factor is not None:
            numbers.append(self.attention_factor)
        if not all(math.isfinite(n) and n > 0 for n in numbers) or self.theta <= 1:
            raise CorruptModel(where, "the rotary embedding has a number that cannot be")
        if self.kind in ("llama3", "yarn") and (self.original_context < 1 or self.low_freq_factor == self.high_freq_factor):
            raise CorruptModel(where, "the rotary embedding's scaling does not hold together")
        if self.kind == "factors" and len(self.factors) != head_dim // 2:
            raise CorruptModel(where, f"{len(self.factors)} rotary factors do not fit heads of {head_dim}")


_MAX_LAYERS = 4096  # more than any model has; a damaged file must not make this process allocate by it


def _layer_count(layers: int, where: object) -> int:
    if not 1 <= layers <= _MAX_LAYERS:
        raise CorruptModel(where, f"{layers} layers cannot be")
    return layers


class ModelSpec(msgspec.Struct, frozen=True):
    """A decoder of pre-norm layers with grouped-query attention and a gated MLP."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    eps: float
    context: int
    rope: Rope
    windows: tuple[int, ...]
    """Per layer: tokens that a query sees, including itself; 0: all."""
    tied: bool
    """Whether the output head is the embedding."""
    qk_norm: bool = False
    """Whether queries and keys are normalised per head before rotation."""

    def check(self, where: object) -> None:
        """Refuses shapes that cannot be run. Raises CorruptModel or UnsupportedModel."""
        sizes = (self.layers, self.hidden, self.intermediate, self.q_heads, self.kv_heads, self.head_dim, self.vocabulary)
        if min(sizes) < 1 or len(self.windows) != self.layers:
            raise CorruptModel(where, "a size of the model is missing or not positive")
        if not (math.isfinite(self.eps) and self.eps >= 0 and self.context >= 1):
            raise CorruptModel(where, "the norm's epsilon or the context length cannot be")
        self.rope.check(self.head_dim, where)
        if self.q_heads % self.kv_heads:
            raise CorruptModel(where, f"{self.q_heads} query heads do not divide over {self.kv_heads} KV heads")
        if self.hidden % 16 or self.intermediate % 16 or self.head_dim % 16 or self.head_dim > 256:
            raise UnsupportedModel(
                f"{where}: hidden ({self.hidden}), MLP ({self.intermediate}) and head sizes ({self.head_dim}) must be multiples of 16, heads at most 256 wide"
            )

    def kv_bytes(self, element: int) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.kv_heads * self.head_dim * element


def _unsupported(where: object, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{where}: {what}; shoal runs the families {', '.join(FAMILIES)}")


def spec_from_gguf(meta: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], factors: Sequence[float], where: object) -> ModelSpec:
    """`tensors` maps names to shapes (rows first); `factors` is rope_freqs.weight, empty if the file has none.

    Raises CorruptModel, UnsupportedModel.
    """
    try:
        return _from_metadata(meta, tensors, factors, where)
    except (ValueError, TypeError, OverflowError) as error:
        raise CorruptModel(where, f"the metadata does not hold together ({error})") from None


def _from_metadata(meta: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], factors: Sequence[float], where: object) -> ModelSpec:
    arch = meta.get("general.architecture")
    if arch not in ("llama", "qwen2", "qwen3"):
        raise _unsupported(where, f"architecture '{arch}' is not supported")
    family = str(arch)
    if int(meta.get(f"{arch}.expert_count", 0)):
        raise _unsupported(where, "Mixture-of-Experts models are not supported yet")

    def need(key: str) -> Any:
        try:
            return meta[f"{arch}.{key}"]
        except KeyError:
            raise CorruptModel(where, f"the metadata has no {arch}.{key}") from None

    def whole(key: str) -> int:
        value = need(key)
        if isinstance(value, list):
            values = cast("list[int]", value)
            if len(set(values)) != 1:
                raise _unsupported(where, f"{key} differs from layer to layer")
            return int(values[0])
        return int(value)

    layers, hidden, heads = _layer_count(whole("block_count"), where), whole("embedding_length"), whole("attention.head_count")
    if heads < 1:
        raise CorruptModel(where, "no attention heads")
    head_dim = int(meta.get(f"{arch}.attention.key_length", hidden // heads))
    if int(meta.get(f"{arch}.attention.value_length", head_dim)) != head_dim:
        raise _unsupported(where, "keys and values of different widths are not supported")
    if int(meta.get(f"{arch}.rope.dimension_count", head_dim)) != head_dim:
        raise _unsupported(where, "partial rotary embedding is not supported")
    try:
        vocabulary = tensors["token_embd.weight"][0]
    except KeyError:
        raise CorruptModel(where, "no token_embd.weight") from None
    kind = str(meta.get(f"{arch}.rope.scaling.type", "none"))
    for key in ("rope.scaling.attn_factor", "rope.scale_linear", "rope.scaling.yarn_attn_factor"):
        if float(meta.get(f"{arch}.{key}", 1.0)) != 1.0:
            raise _unsupported(where, f"{key} is not supported")
    theta = float(meta.get(f"{arch}.rope.freq_base", 10000.0))
    context = whole("context_length")
    if factors:
        rope = Rope(theta=theta, kind="factors", factors=tuple(float(f) for f in factors))
    elif kind == "none":
        rope = Rope(theta=theta)
    elif kind in ("linear", "yarn"):
        rope = Rope(
            theta=theta,
            kind=kind,
            factor=float(meta.get(f"{arch}.rope.scaling.factor", 1.0)),
            original_context=int(meta.get(f"{arch}.rope.scaling.original_context_length", context)),
            beta_fast=float(meta.get(f"{arch}.rope.scaling.yarn_beta_fast", 32.0)),
            beta_slow=float(meta.get(f"{arch}.rope.scaling.yarn_beta_slow", 1.0)),
        )
    else:
        raise _unsupported(where, f"rope scaling '{kind}' is not supported")
    window = int(meta.get(f"{arch}.attention.sliding_window", 0))
    return ModelSpec(
        family=family,
        layers=layers,
        hidden=hidden,
        intermediate=whole("feed_forward_length"),
        q_heads=heads,
        kv_heads=whole("attention.head_count_kv") if f"{arch}.attention.head_count_kv" in meta else heads,
        head_dim=head_dim,
        vocabulary=int(vocabulary),
        eps=float(need("attention.layer_norm_rms_epsilon")),
        context=context,
        rope=rope,
        windows=(window,) * layers,
        tied="output.weight" not in tensors,
        qk_norm=arch == "qwen3",
    )


def spec_from_config(config: Mapping[str, Any], where: object) -> ModelSpec:
    """From the content of a config.json."""
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise _unsupported(where, f"model_type '{family}' is not supported")
    if config.get("quantization_config"):
        method = cast("Mapping[str, Any]", config["quantization_config"]).get("quant_method")
        raise UnsupportedModel(f"{where}: weights quantised by '{method}' are not supported; use a GGUF file or unquantised safetensors")
    if config.get("hidden_act", "silu") != "silu":
        raise _unsupported(where, f"activation '{config['hidden_act']}' is not supported")

    def whole(key: str) -> int:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise CorruptModel(where, f"config.json has no whole number '{key}'")
        return value

    hidden, heads, layers = whole("hidden_size"), whole("num_attention_heads"), _layer_count(whole("num_hidden_layers"), where)
    if min(hidden, heads, layers) < 1:
        raise CorruptModel(where, "a size in config.json is not positive")
    head_dim = int(config.get("head_dim") or hidden // heads)
    context = whole("max_position_embeddings")
    # transformers 5 writes rope_parameters, earlier ones rope_theta and rope_scaling.
    scaling = dict(cast("Mapping[str, Any]", config.get("rope_parameters") or config.get("rope_scaling") or {}))
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    if float(scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise _unsupported(where, "partial rotary embedding is not supported")
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise _unsupported(where, f"rope scaling '{kind}' is not supported")
    if kind == "yarn" and (scaling.get("mscale") or scaling.get("mscale_all_dim")):
        raise _unsupported(where, "yarn with mscale is not supported")
    rope = Rope(
        theta=theta,
        kind=kind,
        factor=float(scaling.get("factor") or 1.0),
        low_freq_factor=float(scaling.get("low_freq_factor") or 1.0),
        high_freq_factor=float(scaling.get("high_freq_factor") or 4.0),
        original_context=int(scaling.get("original_max_position_embeddings") or context),
        beta_fast=float(scaling.get("beta_fast") or 32.0),
        beta_slow=float(scaling.get("beta_slow") or 1.0),
        attention_factor=None if scaling.get("attention_factor") is None else float(scaling["attention_factor"]),
        truncate=bool(scaling.get("truncate", True)),
    )
    return ModelSpec(
        family=family,
        layers=layers,
        hidden=hidden,
        intermediate=whole("intermediate_size"),
        q_heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        vocabulary=whole("vocab_size"),
        eps=float(config.get("rms_norm_eps", 1e-6)),
        context=context,
        rope=rope,
        windows=_windows(config, family, layers),
        tied=bool(config.get("tie_word_embeddings", False)),
        qk_norm=family == "qwen3",
    )


def _windows(config: Mapping[str, Any], family: str, layers: int) -> tuple[int, ...]:
    window = int(config.get("sliding_window") or 0)
    if not window or family == "llama":
        return (0,) * layers
    if types := cast("list[str] | None", config.get("layer_types")):
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)
    if family == "mistral":
        return (window,) * layers
    if not config.get("use_sliding_window"):
        return (0,) * layers
    full = int(config.get("max_window_layers", layers))  # the layers below it see everything
    return tuple(window if layer >= full else 0 for layer in range(layers))
