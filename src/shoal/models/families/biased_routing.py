"""DeepSeek-V3's choice of experts, which other families took over."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.spec import Routing


def biased(config: ConfigJson) -> Routing:
    """Sigmoid scores, a bias for the choice, groups by the sum of their two best."""
    return Routing(
        config.whole("num_experts_per_tok"),
        "sigmoid",
        renormalised=bool(config.get("norm_topk_prob", True)),
        scale=float(config.get("routed_scaling_factor", 1.0)),
        selection_bias=True,
        groups=int(config.get("n_group") or 1),
        groups_chosen=int(config.get("topk_group") or 1),
        group_score="best two",
    )
