"""What files call a model's tensors, by the names that shoal has for them (see models/weights.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WHOLE = ("embed", "norm", "head")
"""Those of no layer."""


@dataclass(frozen=True)
class TensorNames:
    layers: str
    """What stands before a layer's number."""
    parts: Mapping[str, str]

    def stored(self, name: str) -> str:
        """'layers.3.q.bias' -> 'blk.3.attn_q.bias'."""
        parts = name.split(".")
        kind = "bias" if parts[-1] == "bias" else "weight"
        if kind == "bias":
            parts.pop()
        prefix = f"{self.layers}.{parts[1]}." if parts[0] == "layers" else ""
        return f"{prefix}{self.parts[parts[-1]]}.{kind}"

    def all(self, layers: int) -> set[str]:
        """Those that a model of that many layers may have, as its file calls them."""
        inner = [f"layers.{i}.{part}" for i in range(layers) for part in self.parts if part not in WHOLE]
        return {self.stored(name + kind) for name in (*WHOLE, *inner) for kind in ("", ".bias")}


GGUF = TensorNames(
    "blk",
    {
        "embed": "token_embd",
        "norm": "output_norm",
        "head": "output",
        "attention_norm": "attn_norm",
        "mlp_norm": "ffn_norm",
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "o": "attn_output",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
    },
)
"""As llama.cpp names them for most families."""
HUGGING_FACE = TensorNames(
    "model.layers",
    {
        "embed": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
)
"""As transformers names them for most families."""
