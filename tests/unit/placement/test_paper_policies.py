"""The policies that MoE-Lightning's optimiser chose, against those that this search chooses with the same inputs.

Its artifact lists, for Mixtral 8x7B in 16 bits and prompts of 77 tokens on average, micro-batch x number of micro-batches by length
of the answers, and the constants that its optimiser was given on the machine with an L4: 17.18 GB/s from memory to the GPU, 306 and
81.6 GB/s of memory, 104 and 1.6 Tflop/s, 86 % of 24 GiB and 80 % of 184.3 GiB to use. It tries micro-batches of 1 to 4, then every
32nd number, and every number of them.

Reproduced on the L4: 324 x 14, 228 x 16 and 164 x 16 for answers of 32, 64 and 128 tokens, and 100 x 15 of the paper's table 4 (prompts
padded to 256 tokens, answers of 50): the same numbers. For 256 tokens the search finds 164 x 10 instead of 132 x 12, a batch that is 4 %
larger and predicted to be 2 % faster; why theirs passed it over is not known. The head is left out, as there. What this model adds
(prompts, copies into staging buffers, the projections' weights, results of attention on the link) is in, and changes none of these.

The constants of the machine with a T4 are not published. With those of its data sheet: 164 x 14 for answers of 128 tokens, as there;
164 x 20 instead of 164 x 19 for 64; other numbers for 32 and 256, where the published ones are predicted to give 85 and 99 % of the best.

Not reproduced: the policies for prompts of 1984 tokens, of which 8 x 36 on the L4 holds 9 GiB more than 80 % of the memory.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.config import KvType
from shoal.errors import NotEnoughMemory
from shoal.placement.cost import Matrices
from shoal.placement.hardware import Hardware
from shoal.placement.policy import Grid, predict, search
from shoal.placement.room import Room
from shoal.placement.steps import Steps
from shoal.placement.workload import Policy, Workload
from tests.support.plans import GIB, mixtral, with_gpu

GRID = Grid((1, 2, 3, 4, *range(36, 500, 32)), tuple(range(1, 40)), (1.0,))
MEMORY, XEON = int(0.8 * 197880360960), 81604378624
MODEL = replace(mixtral(), head=Matrices(0, 0))


def staged(hardware: Hardware) -> Hardware:
    """Weights are copied into pinned memory before they are sent: read and written once more."""
    return replace(hardware, links=(replace(hardware.links[0], copies=2),))


L4 = staged(with_gpu(MEMORY, int(0.86 * 24 * GIB), 17179869184, (XEON, 306016419840), (1.6e12, 104e12)))
T4 = staged(with_gpu(MEMORY, int(0.86 * 16 * GIB), 12 * GIB, (XEON, 285 * GIB), (1.6e12, 52e12)))


def workload(prompt: int, answer: int) -> Workload:
    return Workload(prompt, answer, 20_000, chunk=0)


def relative(hardware: Hardware, prompt: int, answer: int, micro: int, count: int) -> float:
    """Predicted speed of a published policy over that of the best on the grid."""
    work = workload(prompt, answer)
    steps = Steps(MODEL, hardware, work)
    policy = Policy(micro * count, micro, "processor", "GPU", 1.0, KvType.BF16, (0, 0), True)
    held = Room(steps).weights(policy)
    assert not isinstance(held, NotEnoughMemory), held
    best = search(MODEL, hardware, work, GRID).prediction.tokens_per_second
    return predict(steps, replace(policy, weight_bytes=held)).tokens_per_second / best


@pytest.mark.parametrize(
    ("prompt", "answer", "published", "found"),
    [
        (77, 32, (324, 14), (324, 14)),
        (77, 64, (228, 16), (228, 16)),
        (77, 128, (164, 16), (164, 16)),
        (256, 50, (100, 15), (100, 15)),
        (77, 256, (132, 12), (164, 10)),
    ],
)
def test_on_an_l4(prompt: int, answer: int, published: tuple[int, int], found: tuple[int, int]):
    """Attention on the processor, feed-forward on the GPU, as there; the same numbers, or a batch within 4 % and a micro-batch within one step of 32."""
    policy = search(MODEL, L4, workload(prompt, answer), GRID).policy
    assert (policy.attention, policy.feed_forward, policy.ahead) == ("processor", "GPU", True)
    assert (policy.micro, policy.micro_batches) == found
    assert policy.batch == pytest.approx(published[0] * published[1], rel=0.04)
    assert abs(policy.micro - published[0]) <= 32
    assert relative(L4, prompt, answer, *published) > 0.95


@pytest.mark.parametrize(
    ("answer", "published", "least"), [(32, (164, 19), 0.84), (64, (164, 19), 0.96), (128, (164, 14), 1.0), (256, (100, 15), 0.99)]
)
def test_on_a_t4_the_published_policies_are_predicted_to_be_good(answer: int, published: tuple[int, int], least: float):
    policy = search(MODEL, T4, workload(77, answer), GRID).policy
    assert (policy.attention, policy.feed_forward, policy.ahead) == ("processor", "GPU", True)
    assert relative(T4, 77, answer, *published) >= least


def test_a_policy_for_prompts_of_1984_tokens_holds_more_than_its_optimiser_allows():
    steps = Steps(MODEL, L4, workload(1984, 64))
    held = Room(steps).weights(Policy(8 * 36, 8, "processor", "GPU", 1.0, KvType.BF16, (0, 0), True))
    assert isinstance(held, NotEnoughMemory)


def test_it_is_the_link_that_limits_these_policies():
    for answer in (32, 64, 256):
        assert search(MODEL, L4, workload(77, answer), GRID).prediction.limit == "link"
