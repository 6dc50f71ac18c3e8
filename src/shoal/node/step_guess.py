"""What steps will take on a route, estimated from the nodes' measurements and the model's sizes."""

from __future__ import annotations

from itertools import pairwise

from shoal.placement.partition import Placement
from shoal.placement.profile import LinkSpeeds, ModelCost
from shoal.scheduler.cost import StageCost, StepCost

_DOUBT = 2.0  # factor by which a step may take longer, until the first one has come back
_ATTENTION = 4.0  # an operation of the attention takes this many times as long as one of the products


def step_guess(model: ModelCost, placement: Placement, links: LinkSpeeds) -> StepCost:
    stages = [
        StageCost(
            _DOUBT * stage.seconds,
            _DOUBT * stage.prefill_seconds,
            _DOUBT * _ATTENTION * stage.prefill_seconds * model.attention / (2 * model.layer_parameters),
            _DOUBT * stage.prefill_seconds / stage.layers * model.head_parameters / model.layer_parameters,
        )
        for stage in placement.stages
    ]
    nodes = [stage.node for stage in placement.stages]
    row = sum(model.activation_bytes / links.between(a, b).bytes_per_second for a, b in pairwise(nodes))
    return StepCost(stages, StageCost(placement.hop_seconds, row, 0.0, 0.0))
