"""The choice of experts in torch alone: what the kernels of shoal.triton.gating are compared with."""

from __future__ import annotations

import torch

from shoal.triton.gating import Gating


def reference_choice(logits: torch.Tensor, how: Gating, selection_bias: torch.Tensor | None = None) -> torch.Tensor:
    """Ids [rows, chosen], by a stable sort of float32 scores, each computed in double precision and rounded once."""
    scores = _scores(logits.detach().double(), how)
    compared = (logits.detach() if scores is None else scores).float()
    if selection_bias is not None:
        compared = compared + selection_bias
    if how.groups_chosen < how.groups:
        by_group = compared.view(len(compared), how.groups, compared.shape[1] // how.groups)
        ordered = by_group.sort(dim=-1, descending=True, stable=True).values
        best = ordered[..., 0] + ordered[..., 1] if how.group_score == "best two" and ordered.shape[-1] > 1 else ordered[..., 0]
        closed = best.sort(dim=-1, descending=True, stable=True).indices[:, how.groups_chosen :]
        by_group = by_group.scatter(1, closed[..., None].expand(-1, -1, by_group.shape[2]), -torch.inf)
        compared = by_group.flatten(1)
    return compared.sort(dim=-1, descending=True, stable=True).indices[:, : how.chosen]


def reference_weights(logits: torch.Tensor, how: Gating, ids: torch.Tensor) -> torch.Tensor:
    """Weights [rows, chosen] of these experts in double precision, with gradients."""
    wide = logits.double()
    scores = _scores(wide, how)
    weights = torch.softmax(wide.gather(1, ids), -1) if scores is None else scores.gather(1, ids)
    if how.renormalised:
        weights = weights / (weights.sum(-1, keepdim=True) + (1e-20 if how.scores == "sigmoid" else 0.0))
    return weights * torch.tensor(how.scale, dtype=torch.float32).double()


def _scores(wide: torch.Tensor, how: Gating) -> torch.Tensor | None:
    """None where the logits themselves are compared."""
    if how.scores == "softmax":
        return torch.softmax(wide, -1)
    return torch.sigmoid(wide) if how.scores == "sigmoid" else None


FAMILIES: dict[str, tuple[int, Gating, bool]] = {
    "Mixtral 8x7B": (8, Gating(2, renormalised=True), False),
    "Qwen3-30B-A3B": (128, Gating(8, renormalised=True), False),
    "DeepSeek-V2-Lite": (64, Gating(6), False),
    "DeepSeek-V2": (160, Gating(6, scale=16.0, groups=8, groups_chosen=3), False),
    "DeepSeek-V3": (256, Gating(8, "sigmoid", True, 2.5, groups=8, groups_chosen=4, group_score="best two"), True),
    "gpt-oss-20b": (32, Gating(4, "softmax of the chosen"), False),
    "Llama 4 Scout": (16, Gating(1, "sigmoid"), False),
}
"""Number of experts, how they are chosen, and whether there is a selection bias."""
