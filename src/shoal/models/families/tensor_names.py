"""What files call a model's tensors, by the names that shoal has for them (see models/weights.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

WHOLE = ("embed", "norm", "head")
"""Those of no layer."""


@dataclass(frozen=True)
class TensorPiece:
    """Where in a tensor something lies that is not all of it."""

    tensor: str
    """Without the layer's prefix; '{expert}' is the expert's number."""
    rows: tuple[str, ...] = ()
    """Matrices of the same part whose rows follow each other in the tensor, this one among them."""
    alternating: bool = False
    """Their rows take turns instead."""
    stacked: bool = False
    """The tensor has this of every expert, one after the other."""
    transposed: bool = False
    """The tensor is [k, n], or one such matrix per expert."""
    heads: Literal["", "keys", "values"] = ""
    """Latent attention's matrix with the rows of each head's keys, then those of its values."""
    suffix: str = ".weight"
    bias: str = ".bias"


@dataclass(frozen=True)
class TensorPlace:
    """A tensor by its name in the file, and what of it is meant."""

    tensor: str
    piece: TensorPiece
    expert: int = 0


Parts = Mapping[str, str | TensorPiece | tuple[str | TensorPiece, ...]]


@dataclass(frozen=True)
class TensorNames:
    layers: str
    """What stands before a layer's number."""
    parts: Parts
    """By the name of a part without its layer and its expert's number. Of several, a file has one."""
    elsewhere: tuple[tuple[str, str], ...] = ()
    """What else names may begin with: instead of the first, the second."""

    @property
    def layer_prefixes(self) -> set[str]:
        """What stands before a layer's number, wherever the model lies."""
        moved = {other + self.layers.removeprefix(usual) for usual, other in self.elsewhere if self.layers.startswith(usual)}
        return {self.layers} | moved

    def places(self, name: str) -> Iterator[TensorPlace]:
        """Where a file may have something: 'layers.3.q.bias' -> 'blk.3.attn_q.bias'."""
        words = name.split(".")
        bias = words[-1] == "bias"
        if bias:
            words.pop()
        prefix, expert = "", 0
        if words[0] == "layers":
            prefix, words = f"{self.layers}.{words[1]}.", words[2:]
        if words[0] == "experts":
            expert, words = int(words[1]), [words[0], words[2]]
        known = self.parts.get(".".join(words), ())
        for one in known if isinstance(known, tuple) else (known,):
            piece = one if isinstance(one, TensorPiece) else TensorPiece(one)
            tensor = prefix + piece.tensor.format(expert=expert) + (piece.bias if bias else piece.suffix)
            yield TensorPlace(tensor, piece, expert)
            for usual, other in self.elsewhere:
                if tensor.startswith(usual):
                    yield TensorPlace(other + tensor.removeprefix(usual), piece, expert)

    def stored(self, name: str) -> str:
        """What the file calls it, if it has it under its likeliest name; '' if this family has no such thing."""
        return next((place.tensor for place in self.places(name)), "")


def gguf(**changes: str | TensorPiece | tuple[str | TensorPiece, ...]) -> TensorNames:
    """As llama.cpp names them for most families, but for some; a double underscore stands for the dot."""
    return TensorNames("blk", {**_GGUF, **{name.replace("__", "."): stored for name, stored in changes.items()}})


def hugging_face(layers: str = "model.layers", /, **changes: str | TensorPiece | tuple[str | TensorPiece, ...]) -> TensorNames:
    """As transformers names them for most families, but for some; a double underscore stands for the dot."""
    return TensorNames(layers, {**_HUGGING_FACE, **{name.replace("__", "."): stored for name, stored in changes.items()}})


def beside_images(names: TensorNames) -> TensorNames:
    """Also where the language model is a part of one that takes images, as transformers 4 and 5 write it."""
    moved = (("model.", "language_model.model."), ("model.", "model.language_model."), ("lm_head.", "language_model.lm_head."))
    return replace(names, elsewhere=moved)


def stacked(tensor: str) -> TensorPiece:
    return TensorPiece(tensor, stacked=True)


_GATE_UP = ("gate", "up")
_GGUF: Parts = {
    "embed": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "mlp_norm": ("ffn_norm", "post_attention_norm"),
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "router": "ffn_gate_inp",
    "selection_bias": TensorPiece("exp_probs_b", suffix=".bias"),
    # One tensor for all experts; files of early 2024 have one for each.
    "experts.gate": (stacked("ffn_gate_exps"), TensorPiece("ffn_gate_up_exps", _GATE_UP, stacked=True), "ffn_gate.{expert}"),
    "experts.up": (stacked("ffn_up_exps"), TensorPiece("ffn_gate_up_exps", _GATE_UP, stacked=True), "ffn_up.{expert}"),
    "experts.down": (stacked("ffn_down_exps"), "ffn_down.{expert}"),
    "shared.gate": "ffn_gate_shexp",
    "shared.up": "ffn_up_shexp",
    "shared.down": "ffn_down_shexp",
    "shared_gate": "ffn_gate_inp_shexp",
}
_HUGGING_FACE: Parts = {
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
    "router": "mlp.gate",
    "experts.gate": "mlp.experts.{expert}.gate_proj",
    "experts.up": "mlp.experts.{expert}.up_proj",
    "experts.down": "mlp.experts.{expert}.down_proj",
}
GGUF, HUGGING_FACE = gguf(), hugging_face()
FUSED_QKV, FUSED_GATE_UP = ("q", "k", "v"), _GATE_UP
"""Matrices that some families keep in one tensor."""


def rows_of(tensor: str, members: tuple[str, ...]) -> dict[str, str | TensorPiece]:
    """Each of the members, in the tensor that they share."""
    return {member: TensorPiece(tensor, members) for member in members}
