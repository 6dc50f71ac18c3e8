"""Top-k gating of a Mixture of Experts: which experts take a row, and with what weights.

The semantics are those of shoal's own router (`Routing` in models/spec.py, `Experts::route` in native/experts.cpp): scores of the logits;
plus the selection bias, for the choice alone; the best groups; the best experts of them; their weights, of the scores without the bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from shoal.triton import gating_kernels
from shoal.triton.checks import check_tensor
from shoal.triton.launch import check_device, launch, next_power_of_two, tiles

MOST_EXPERTS, MOST_CHOSEN = 256, 16
_KERNELS: Any = gating_kernels  # Triton has no types
_SCORES = {"softmax": _KERNELS.SOFTMAX, "sigmoid": _KERNELS.SIGMOID, "softmax of the chosen": _KERNELS.SOFTMAX_OF_CHOSEN}
_BLOCK = 256
"""Experts of a program, with what fills up to powers of two: those of as many rows as fit, one warp for them."""


@dataclass(frozen=True)
class Gating:
    """How experts are chosen and weighted. Its fields are those of shoal.models.spec.Routing."""

    chosen: int
    """Experts for each row, k: 1 to 16."""
    scores: Literal["softmax", "sigmoid", "softmax of the chosen"] = "softmax"
    """Of the logits. The last compares the logits themselves."""
    renormalised: bool = False
    """Whether the weights of the chosen are divided by their sum; with sigmoid scores, by that and 1e-20."""
    scale: float = 1.0
    """Of the weights, rounded to float32."""
    groups: int = 1
    groups_chosen: int = 1
    """Experts are chosen from the best groups alone. A group is a run of experts / groups neighbours."""
    group_score: Literal["best", "best two"] = "best"
    """A group's score is its best one, or the sum of its two best."""

    @property
    def scale_float32(self) -> float:
        return torch.tensor(self.scale, dtype=torch.float32).item()

    def check(self, experts: int) -> None:
        """Raises TypeError for a number of another type, ValueError for settings that cannot be with so many experts."""
        for name in ("chosen", "groups", "groups_chosen"):
            if type(getattr(self, name)) is not int:
                raise TypeError(f"{name} must be an int, not {getattr(self, name)!r}")
        if self.scores not in _SCORES:
            raise ValueError(f"scores must be one of {', '.join(map(repr, _SCORES))}, not {self.scores!r}")
        if self.group_score not in ("best", "best two"):
            raise ValueError(f"group_score must be 'best' or 'best two', not {self.group_score!r}")
        if not (self.scale > 0 and math.isfinite(self.scale_float32) and self.scale_float32 > 0):
            raise ValueError(f"scale must be positive and within float32, not {self.scale}")
        if not 1 <= experts <= MOST_EXPERTS:
            raise ValueError(f"there must be 1 to {MOST_EXPERTS} experts, not {experts}")
        if not 1 <= self.chosen <= min(MOST_CHOSEN, experts):
            raise ValueError(f"{self.chosen} of {experts} experts cannot be chosen: 1 to {min(MOST_CHOSEN, experts)} can")
        if self.groups < 1 or experts % self.groups or not 1 <= self.groups_chosen <= self.groups:
            raise ValueError(f"{experts} experts cannot be in {self.groups} groups of which {self.groups_chosen} are chosen")
        if self.chosen > (open_experts := experts // self.groups * self.groups_chosen):
            raise ValueError(f"{self.chosen} experts cannot be chosen from {self.groups_chosen} groups that have {open_experts}")


def top_k_gating(logits: torch.Tensor, gating: Gating, selection_bias: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses experts for every row, and weights them.

    logits:         [rows, experts] float32 or bfloat16, of any strides; 1 to 256 experts
    selection_bias: [experts] float32, added to the scores for the choice alone; or None
    returns:        weights [rows, chosen] float32, and ids [rows, chosen] int64 of the experts, by falling compared score

    Scores and weights are computed in double precision and rounded once to float32; scores are compared in float32, and of equal ones
    the lower expert is taken. A NaN counts as more than every number. So a row with a NaN has experts that there are, all different; its
    weights are NaN with a softmax over all experts, which makes the scores of the whole row NaN, and else wherever a NaN was chosen.

    The weights have a gradient with respect to the logits, and none with respect to the bias. A second derivative is refused.

    Raises TypeError and ValueError before anything is computed.
    """
    check_tensor("logits", logits, 2, (torch.float32, torch.bfloat16))
    experts = logits.shape[1]
    gating.check(experts)
    if selection_bias is not None:
        check_tensor("selection_bias", selection_bias, 1, (torch.float32,))
        if len(selection_bias) != experts:
            raise ValueError(f"selection_bias has {len(selection_bias)} values for {experts} experts")
    check_device(_KERNELS.choose_kernel, logits=logits, selection_bias=selection_bias)
    function: Any = _TopKGating  # torch has no types for `apply`
    weights, ids = function.apply(logits, selection_bias, gating)
    return weights, ids


class _TopKGating(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, selection_bias: torch.Tensor | None, gating: Gating) -> tuple[torch.Tensor, torch.Tensor]:
        rows, experts = logits.shape
        weights = torch.empty((rows, gating.chosen), dtype=torch.float32, device=logits.device)
        ids = torch.empty((rows, gating.chosen), dtype=torch.int64, device=logits.device)
        groups = gating.groups if gating.groups_chosen < gating.groups else 1  # all of them chosen: as if there were none
        block_groups, block_size = next_power_of_two(groups), next_power_of_two(experts // groups)
        block_rows = max(_BLOCK // (block_groups * block_size), 1)
        if rows:
            launch(
                _KERNELS.choose_kernel,
                tiles(rows, block_rows),
                logits,
                selection_bias,
                weights,
                ids,
                rows,
                *logits.stride(),
                0 if selection_bias is None else selection_bias.stride(0),
                gating.scale_float32,
                SCORES=_SCORES[gating.scores],
                EXPERTS=experts,
                CHOSEN=gating.chosen,
                GROUPS=groups,
                GROUPS_CHOSEN=min(gating.groups_chosen, groups),
                BEST_TWO=gating.group_score == "best two",
                RENORMALISED=gating.renormalised,
                BLOCK_ROWS=block_rows,
                BLOCK_GROUPS=block_groups,
                BLOCK_SIZE=block_size,
                BLOCK_CHOSEN=next_power_of_two(gating.chosen),
                num_warps=1,
                enable_fp_fusion=False,
            )
        ctx.gating = gating
        ctx.save_for_backward(logits, ids)
        ctx.mark_non_differentiable(ids)
        return weights, ids

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("top_k_gating has no second derivative: its gradient cannot be taken with create_graph")
        gating: Gating = ctx.gating
        logits, ids = ctx.saved_tensors
        rows, experts = logits.shape
        out = torch.empty((rows, experts), dtype=logits.dtype, device=logits.device)
        block_experts = next_power_of_two(experts)
        block_rows = max(_BLOCK // block_experts, 1)
        if rows:
            launch(
                _KERNELS.choose_backward_kernel,
                tiles(rows, block_rows),
                logits,
                ids,
                grad_outputs[0].contiguous(),
                out,
                rows,
                *logits.stride(),
                gating.scale_float32,
                SCORES=_SCORES[gating.scores],
                EXPERTS=experts,
                CHOSEN=gating.chosen,
                RENORMALISED=gating.renormalised,
                BLOCK_ROWS=block_rows,
                BLOCK_EXPERTS=block_experts,
                num_warps=1,
                enable_fp_fusion=False,
            )
        return out, None, None
