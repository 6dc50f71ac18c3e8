"""What a step is guessed to take before one has run, from what the stage's own layers cost."""

from __future__ import annotations

import pytest

from shoal.node.step_guess import step_guess
from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.partition import place
from shoal.placement.profile import Demand, LinkSpeeds
from shoal.scheduler.cost import StepLoad
from tests.support.nodes import MB, node

FLOPS = 1e9
DENSE = LayerCost(Matrices(MB, 3 * MB), 1024, attention=500)
SPARSE = LayerCost(Matrices(MB, MB), 1024, attention=2000, experts=ExpertsCost(8, 2, Matrices(MB, 2 * MB)))
MODEL = ModelCost((DENSE, SPARSE), Matrices(MB, 7 * MB), 4096, MB)


def seconds(load: StepLoad) -> float:
    """Of one stage that holds all, beyond what an empty step takes."""
    placement = place([node("a", flops=FLOPS)], LinkSpeeds(), MODEL, Demand(1, 256, 256))
    (stage,) = step_guess(MODEL, placement, LinkSpeeds())._stages
    return stage.seconds(load) - stage.seconds(StepLoad())


def test_a_row_takes_the_products_of_its_layers_and_of_the_experts_that_it_chooses():
    assert seconds(StepLoad(rows=1)) == pytest.approx(2 * 2 * (3 + 1 + 2 * 2) * MB / FLOPS)


def test_a_token_of_context_takes_the_attention_of_every_layer():
    assert seconds(StepLoad(context=1)) == pytest.approx(2 * 4 * (500 + 2000) / FLOPS)


def test_logits_take_the_product_with_the_head():
    assert seconds(StepLoad(logits=1)) == pytest.approx(2 * 2 * 7 * MB / FLOPS)
