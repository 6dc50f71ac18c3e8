"""What steps will take on a route, estimated from the nodes' measurements and the model's sizes."""

from __future__ import annotations

from itertools import pairwise

from shoal.placement.cost import ModelCost
from shoal.placement.partition import Placement, StagePlan
from shoal.placement.profile import LinkSpeeds
from shoal.scheduler.cost import StageCost, StepCost, StreamedExperts

_DOUBT = 2.0  # factor by which a step may take longer, until the first one has come back
_ATTENTION = 4.0  # an operation of the attention takes this many times as long as one of the products


def step_guess(model: ModelCost, placement: Placement, links: LinkSpeeds) -> StepCost:
    stages = [_stage_guess(model, stage) for stage in placement.stages]
    nodes = [stage.node for stage in placement.stages]
    row = sum(model.activation_bytes / links.between(a, b).bytes_per_second for a, b in pairwise(nodes))
    return StepCost(stages, StageCost(placement.hop_seconds, row, 0.0, 0.0))


def _stage_guess(model: ModelCost, stage: StagePlan) -> StageCost:
    layers = model.layers[stage.first : stage.end]
    operation = stage.prefill_seconds / sum(layer.flops(1) for layer in layers)  # seconds
    routed = [layer.experts for layer in layers if layer.experts is not None]
    streamed = None
    if stage.experts_seconds and routed:
        streamed = StreamedExperts(_DOUBT * stage.experts_seconds, max(experts.chosen / experts.count for experts in routed))
    return StageCost(
        _DOUBT * stage.seconds,
        _DOUBT * stage.prefill_seconds,
        _DOUBT * _ATTENTION * operation * sum(layer.attention for layer in layers),
        _DOUBT * operation * model.head.flops(1),
        streamed,
    )
