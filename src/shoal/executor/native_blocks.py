"""Makes blocks that the kernels run, from matrices and vectors by their names."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any, Protocol

from shoal.executor.base import BlockPart, Floats, Packed
from shoal.executor.packing import required
from shoal.models.spec import Experts, GroupedQuery, Latent, ModelSpec, rotation
from shoal.native import reference

if TYPE_CHECKING:
    from shoal.native import Linear, Matrix, Norm


class Tensors(Protocol):
    """Where a block's matrices and vectors come from, by the names of models/weights.py."""

    def matrix(self, name: str) -> Matrix:
        """As packed."""
        ...

    def vector(self, name: str) -> Floats | None: ...


Mlp = tuple["Linear", "Linear", "Linear"]
"""Gate, up and down."""


class HeadBlock:
    def __init__(self, head: Any, norm: Floats, bias: Floats | None, spec: ModelSpec) -> None:
        self.head, self.nbytes = head, int(head.nbytes)
        self._norm, self._bias, self._spec = norm, bias, spec

    def normed(self, hidden: Floats) -> Floats:
        return reference.norm(hidden, self._norm, self._spec.eps, self._bias, centred=self._spec.norm == "layer")


class BlockMaker:
    """Makes blocks of one layer's tensors; the head's layer is the number of layers."""

    def __init__(self, module: Any, spec: ModelSpec, tensors: Tensors, layer: int) -> None:
        self._module, self._spec, self._tensors = module, spec, tensors
        self._layer = None if layer == len(spec.layers) else spec.layers[layer]
        self._name = f"layers.{layer}."

    def block(self, part: BlockPart, experts: bool = True, without: Container[int] = ()) -> Packed:
        """experts: whether to put the experts into their block. without: those that are left out in any case."""
        match part:
            case BlockPart.ATTENTION:
                return self._attention(self._spec.rotations)
            case BlockPart.FEED_FORWARD:
                return self._feed_forward(experts, without)
            case BlockPart.HEAD:
                return self._head()

    def expert(self, number: int) -> Mlp:
        return self._mlp(f"experts.{number}.")

    def _head(self) -> HeadBlock:
        norm, bias = required(self._tensors, "norm"), self._tensors.vector("norm.bias")
        matrix = self._module.Linear(self._tensors.matrix("head"))
        return HeadBlock(self._module.Head(self._normed(norm, bias), matrix), norm, bias, self._spec)

    def _attention(self, rotations: list[Any]) -> Packed:
        assert self._layer is not None
        kind, turned = self._layer.attention, rotation(self._layer)
        at = -1 if turned is None else rotations.index(turned)
        around = self._around("attention_norm", "attention_after_norm")
        if isinstance(kind, Latent):
            return self._module.Latent(
                around,
                self._linear("q_a") if kind.q_rank else None,
                *(self._linear(name) for name in ("q", "kv_a", "k_b", "v_b", "o")),
                q_a_norm=self._norm("q_a_norm") if kind.q_rank else None,
                kv_a_norm=self._norm("kv_a_norm"),
                heads=kind.q_heads,
                rank=kind.kv_rank,
                nope=kind.nope_dim,
                rope=kind.rope_dim,
                value_dim=kind.value_dim,
                scale=kind.scale,
                rotation=at,
            )
        return self._module.GroupedQuery(
            around,
            *(self._linear(name) for name in ("q", "k", "v", "o")),
            **grouped_query(kind, at),
            q_norm=self._norm("q_norm", rms=True) if kind.qk_norm else None,
            k_norm=self._norm("k_norm", rms=True) if kind.qk_norm else None,
            sinks=required(self._tensors, self._name + "sinks") if kind.sinks else None,
        )

    def _feed_forward(self, experts: bool, without: Container[int]) -> Packed:
        assert self._layer is not None
        kind = self._layer.feed_forward
        around = self._around("mlp_norm", "mlp_after_norm", same_input=self._layer.parallel)
        if not isinstance(kind, Experts):
            return self._module.Dense(around, self._mlp(""), kind.activation)
        routing = kind.routing
        return self._module.Experts(
            around,
            self._linear("router"),
            [self.expert(number) if experts and number not in without else None for number in range(kind.count)],
            chosen=routing.chosen,
            width=kind.width,
            activation=kind.activation,
            selection_bias=required(self._tensors, self._name + "selection_bias") if routing.selection_bias else None,
            shared=self._mlp("shared.") if kind.shared else None,
            shared_gate=self._linear("shared_gate") if kind.shared_gate else None,
            sigmoid=routing.scores == "sigmoid",
            softmax_after=routing.scores == "softmax of the chosen",
            renormalised=routing.renormalised,
            scale=routing.scale,
            groups=routing.groups,
            groups_chosen=routing.groups_chosen,
            group_by_two=routing.group_score == "best two",
        )

    def _mlp(self, part: str) -> Mlp:
        return self._linear(f"{part}gate"), self._linear(f"{part}up"), self._linear(f"{part}down")

    def _linear(self, name: str) -> Linear:
        full = self._name + name
        return self._module.Linear(self._tensors.matrix(full), self._tensors.vector(f"{full}.bias"))

    def _around(self, before: str, after: str, same_input: bool = False) -> Any:
        assert self._layer is not None
        norms, full = self._layer.norms, [self._name + before, self._name + after]
        made = [
            self._normed(required(self._tensors, name), self._tensors.vector(f"{name}.bias"))
            if norms in ("both", kind) and not (same_input and kind == "before")
            else None
            for name, kind in zip(full, ("before", "after"), strict=True)
        ]
        return self._module.Around(*made, scale=self._layer.residual_scale, same_input=same_input)

    def _norm(self, name: str, rms: bool = False) -> Norm:
        return self._normed(required(self._tensors, self._name + name), None, rms)

    def _normed(self, weight: Floats, bias: Floats | None, rms: bool = False) -> Norm:
        return self._module.Norm(weight, self._spec.eps, bias, centred=self._spec.norm == "layer" and not rms)


def grouped_query(kind: GroupedQuery, rotation: int) -> dict[str, Any]:
    """The kernels' arguments for an attention. rotation: which of the given angles turn it, or -1."""
    return {
        "q_heads": kind.q_heads,
        "kv_heads": kind.kv_heads,
        "key_dim": kind.head_dim,
        "value_dim": kind.values,
        "scale": kind.scaling,
        "cap": kind.cap,
        "clip": kind.clip,
        "window": kind.window,
        "rotation": rotation,
        "rotated": 0 if kind.rope is None else kind.rope.rotated(kind.head_dim),
    }
