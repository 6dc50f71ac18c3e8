"""Layers run by the compiled kernels: all layers of a step in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.config import Precision
from shoal.errors import ConfigError
from shoal.executor.base import Angles, BlockPart, Floats, Ints, Leases, Packed, StageBatch, WeightBlock
from shoal.executor.kv_pool import HostRuntime
from shoal.executor.output import finished
from shoal.executor.packing import pack, required
from shoal.executor.precision import UNROUNDED
from shoal.models.spec import Experts, GroupedQuery, Latent, ModelSpec, rotation
from shoal.models.weights import Weights
from shoal.native import kernels, missing, reference

if TYPE_CHECKING:
    from shoal.native import Linear, Norm


class NativeRuntime(HostRuntime):
    """bf16: how keys and values are stored. Raises ConfigError."""

    def __init__(self, spec: ModelSpec, *, bf16: bool, precision: Precision, threads: int, isa: str = "") -> None:
        if (module := kernels()) is None:
            raise ConfigError(f"the native runtime cannot be used here: {missing()}, or use --runtime onnxruntime")
        self._module = module
        try:
            self._stage = module.Stage(spec.hidden, threads, isa)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        super().__init__(spec, bf16)
        self._spec, self._precision, self._threads = spec, precision, threads
        self._rotations = spec.rotations

    @property
    def name(self) -> str:
        return f"native/{self._stage.isa}"

    def pack(self, weights: Weights, block: WeightBlock) -> Packed:
        made = _Packing(self._module, self._spec, weights, self._precision, self._threads, block.layer)
        match block.part:
            case BlockPart.ATTENTION:
                return made.attention(self._rotations)
            case BlockPart.FEED_FORWARD:
                return made.feed_forward()
            case BlockPart.HEAD:
                return made.head()

    def forward(self, hidden: Floats, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Floats:
        attention = [leases.lease(WeightBlock(layer, BlockPart.ATTENTION)) for layer in layers]
        feed_forward = [leases.lease(WeightBlock(layer, BlockPart.FEED_FORWARD)) for layer in layers]
        pools = [self._pool.of(layer) for layer in layers]
        self._stage.forward(hidden, batch.starts, batch.positions, batch.tables, angles, attention, feed_forward, pools, self._pool.bf16)
        return hidden

    def logits(self, hidden: Floats, picked: Ints, leases: Leases) -> Floats:
        out = np.empty((len(picked), (self._spec.vocabulary + 15) // 16 * 16), np.float32)
        self._stage.logits(hidden, leases.lease(self._head).head, picked, out)
        return finished(out[:, : self._spec.vocabulary], self._spec)

    def normed(self, hidden: Floats, leases: Leases) -> Floats:
        return leases.lease(self._head).normed(hidden)

    @property
    def _head(self) -> WeightBlock:
        return WeightBlock(len(self._spec.layers), BlockPart.HEAD)


class _Head:
    def __init__(self, head: Any, norm: Floats, bias: Floats | None, spec: ModelSpec) -> None:
        self.head, self.nbytes = head, int(head.nbytes)
        self._norm, self._bias, self._spec = norm, bias, spec

    def normed(self, hidden: Floats) -> Floats:
        return reference.norm(hidden, self._norm, self._spec.eps, self._bias, centred=self._spec.norm == "layer")


class _Packing:
    """Makes blocks of one layer's tensors."""

    def __init__(self, module: Any, spec: ModelSpec, weights: Weights, precision: Precision, threads: int, layer: int) -> None:
        self._module, self._spec, self._weights, self._precision, self._threads = module, spec, weights, precision, threads
        self._layer = None if layer == len(spec.layers) else spec.layers[layer]
        self._name = f"layers.{layer}."

    def head(self) -> _Head:
        norm, bias = required(self._weights, "norm"), self._weights.vector("norm.bias")
        matrix = self._module.Linear(pack(self._weights.matrix("head"), self._precision, head=True, threads=self._threads))
        return _Head(self._module.Head(self._normed(norm, bias), matrix), norm, bias, self._spec)

    def attention(self, rotations: list[Any]) -> Packed:
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
            sinks=required(self._weights, self._name + "sinks") if kind.sinks else None,
        )

    def feed_forward(self) -> Packed:
        assert self._layer is not None
        kind = self._layer.feed_forward
        around = self._around("mlp_norm", "mlp_after_norm", same_input=self._layer.parallel)
        if not isinstance(kind, Experts):
            return self._module.Dense(around, self._mlp(""), kind.activation)
        routing = kind.routing
        experts: list[tuple[Linear, Linear, Linear]] = []
        for number in range(kind.count):
            experts.append(self._mlp(f"experts.{number}."))
            if number % 16 == 15:
                self._weights.forget()
        return self._module.Experts(
            around,
            self._linear("router"),
            experts,
            chosen=routing.chosen,
            activation=kind.activation,
            selection_bias=required(self._weights, self._name + "selection_bias") if routing.selection_bias else None,
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

    def _mlp(self, part: str) -> tuple[Linear, Linear, Linear]:
        return self._linear(f"{part}gate"), self._linear(f"{part}up"), self._linear(f"{part}down")

    def _linear(self, name: str) -> Linear:
        full = self._name + name
        precision = Precision.FP32 if name in UNROUNDED else self._precision
        return self._module.Linear(pack(self._weights.matrix(full), precision, threads=self._threads), self._weights.vector(f"{full}.bias"))

    def _around(self, before: str, after: str, same_input: bool = False) -> Any:
        assert self._layer is not None
        norms, full = self._layer.norms, [self._name + before, self._name + after]
        made = [
            self._normed(required(self._weights, name), self._weights.vector(f"{name}.bias"))
            if norms in ("both", kind) and not (same_input and kind == "before")
            else None
            for name, kind in zip(full, ("before", "after"), strict=True)
        ]
        return self._module.Around(*made, scale=self._layer.residual_scale, same_input=same_input)

    def _norm(self, name: str, rms: bool = False) -> Norm:
        return self._normed(required(self._weights, self._name + name), None, rms)

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
