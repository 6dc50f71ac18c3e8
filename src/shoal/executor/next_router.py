"""A guess at what a layer's router will choose, from activations that have not yet gone through the layers before it."""

from __future__ import annotations

import numpy as np

from shoal.executor.base import Floats
from shoal.executor.native_blocks import Tensors
from shoal.models.spec import Experts, ModelSpec
from shoal.native import reference

_PANEL = 16
"""Rows of a matrix that lie side by side in the kernels' layout."""


class NextRouter:
    """In NumPy, beside the kernels. tensors: of the layer, which stay in memory. Groups of experts are ignored."""

    def __init__(self, tensors: Tensors, spec: ModelSpec, layer: int) -> None:
        kind, name, own = spec.layers[layer].feed_forward, f"layers.{layer}.", spec.layers[layer]
        assert isinstance(kind, Experts)
        # An attention that runs beside the experts has the norm of both.
        before = "attention_norm" if own.parallel else "mlp_norm"
        self._norm = tensors.vector(name + before) if own.norms in ("both", "before") else None
        self._norm_bias = tensors.vector(f"{name}{before}.bias")
        self._eps, self._centred = spec.eps, spec.norm == "layer"
        router = tensors.matrix(name + "router")
        self.count, inputs = router.shape
        if router.form[0] != "f32":
            raise ValueError(f"the router of layer {layer} is stored as {router.form[0]}")
        self._panels = router.data.view(np.float32).reshape(-1, inputs, _PANEL)
        self._bias = tensors.vector(name + "router.bias")
        self._scores = kind.routing.scores
        self._selection_bias = tensors.vector(name + "selection_bias") if kind.routing.selection_bias else None
        self._chosen = kind.routing.chosen

    def choices(self, hidden: Floats) -> list[int]:
        """hidden: [rows, hidden]. The experts of all rows: every row's first choice, then every row's second, and so on."""
        x = hidden if self._norm is None else reference.norm(hidden, self._norm, self._eps, self._norm_bias, centred=self._centred)
        scores = np.matmul(x, self._panels).transpose(1, 0, 2).reshape(len(x), -1)[:, : self.count]  # [rows, experts]
        if self._bias is not None:
            scores = scores + self._bias
        if self._selection_bias is not None:
            scores = self._compared(scores) + self._selection_bias
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._chosen]
        return list(dict.fromkeys(best.T.ravel().tolist()))

    def _compared(self, logits: Floats) -> Floats:
        if self._scores == "sigmoid":
            return np.reciprocal(1 + np.exp(-logits), dtype=np.float32)
        if self._scores == "softmax":
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            return powers / powers.sum(axis=1, keepdims=True)
        return logits
