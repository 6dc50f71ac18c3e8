"""transformers as the yardstick: the same weights, dequantised, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shoal.models.spec import Dense, GroupedQuery, ModelSpec
from shoal.models.weights import Weights

HF_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def config_of(spec: ModelSpec) -> Any:
    (layer,) = set(spec.layers)
    attention, feed_forward = layer.attention, layer.feed_forward
    assert isinstance(attention, GroupedQuery) and isinstance(feed_forward, Dense)
    assert attention.rope is not None and attention.rope.kind == "default", "the trained test models have plain rope"
    rope: dict[str, Any] = {"rope_theta": attention.rope.theta, "rope_type": attention.rope.kind}
    return AutoConfig.for_model(
        spec.family,
        hidden_size=spec.hidden,
        intermediate_size=feed_forward.width,
        num_hidden_layers=len(spec.layers),
        num_attention_heads=attention.q_heads,
        num_key_value_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        vocab_size=spec.vocabulary,
        rms_norm_eps=spec.eps,
        max_position_embeddings=spec.context,
        rope_parameters=rope,
        tie_word_embeddings=spec.tied,
    )


def oracle(weights: Weights) -> Any:
    """A transformers model with the weights as floats."""
    spec = weights.spec
    model = AutoModelForCausalLM.from_config(config_of(spec), dtype=torch.float32).eval()
    state: dict[str, torch.Tensor] = {}

    def put(name: str, values: np.ndarray | None) -> None:
        if values is not None:
            state[name] = torch.from_numpy(np.array(values))

    put("model.embed_tokens.weight", weights.matrix("embed").floats())
    put("model.norm.weight", weights.vector("norm"))
    put("lm_head.weight", weights.matrix("head").floats())
    for i in range(len(spec.layers)):
        for ours, theirs in HF_NAMES.items():
            stored = f"model.layers.{i}.{theirs}"
            if ours in MATRICES:
                put(f"{stored}.weight", weights.matrix(f"layers.{i}.{ours}").floats())
                put(f"{stored}.bias", weights.vector(f"layers.{i}.{ours}.bias"))
            else:
                put(f"{stored}.weight", weights.vector(f"layers.{i}.{ours}"))
    model.load_state_dict(state, strict=True)
    return model


@torch.no_grad()
def logits(model: Any, tokens: list[int]) -> np.ndarray:
    """[tokens, vocabulary]"""
    return model(torch.tensor([tokens])).logits[0].numpy()


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, regardless of end-of-text."""
    if not count:
        return []
    # By transformers' own loop, which every version has; how a cache is passed by hand changes with them.
    model.generation_config.eos_token_id = None  # what the call leaves open is taken from here
    tokens = torch.tensor([prompt])
    made = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=count, pad_token_id=0)
    assert made.shape == (1, len(prompt) + count)
    return made[0, len(prompt) :].tolist()
