"""The search: it tries all, never exceeds a tier, and more of anything is never worse."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.config import KvType
from shoal.errors import NotEnoughMemory
from shoal.placement.cost import ExpertsCost, ModelCost
from shoal.placement.hardware import Hardware
from shoal.placement.policy import Grid, Plan, more_memory, predict, search
from shoal.placement.room import Room
from shoal.placement.steps import Steps
from shoal.placement.workload import Policy, Workload
from tests.support.nodes import MB, models
from tests.support.plans import GIB, machines, mixtral, moe, processor, with_gpu

WORKLOADS = st.builds(Workload, st.integers(1, 400), st.integers(1, 200), st.sampled_from([1, 4, 24]), st.sampled_from([0, 16, 512]))
SOME = settings(max_examples=60)


def found(model: ModelCost, hardware: Hardware, workload: Workload) -> Plan | None:
    try:
        return search(model, hardware, workload)
    except NotEnoughMemory:
        return None


def speed(plan: Plan | None) -> float:
    return plan.prediction.tokens_per_second if plan else 0.0


def assert_never_slower(before: Plan | None, after: Plan | None) -> None:
    assert speed(after) >= speed(before) * (1 - 1e-9)


@SOME
@given(models(4), machines(), WORKLOADS)
def test_a_policy_fits_and_is_whole(model: ModelCost, hardware: Hardware, workload: Workload):
    plan = found(model, hardware, workload)
    if plan is None:
        return
    policy, steps = plan.policy, Steps(model, hardware, workload)
    assert policy.batch == policy.micro * policy.micro_batches <= workload.streams
    assert sum(policy.weight_bytes) == model.held_bytes
    feeding = hardware.device(policy.feed_forward).tier
    streams = policy.weight_bytes[feeding] < model.held_bytes
    used = Room(steps).beside(policy, streams)
    rows, held = None if policy.ahead else policy.batch, 0
    for tier in range(len(hardware.tiers) - 1, -1, -1):
        held += policy.weight_bytes[tier]
        smaller = min(steps.streaming.buffers(held, kind) for kind in {None, rows})
        buffers = smaller if 0 < tier <= feeding else 0
        assert used[tier] + policy.weight_bytes[tier] + buffers <= hardware.tiers[tier].size * (1 + 1e-9) + 1


@SOME
@given(models(4), machines(), WORKLOADS)
def test_the_limit_is_what_is_full(model: ModelCost, hardware: Hardware, workload: Workload):
    """A schedule that reads ahead, on one device or with several micro-batches, has nothing to wait for."""
    plan = found(model, hardware, workload)
    if plan is None:
        return
    policy = plan.policy
    for step, waits in (
        (plan.prediction.decode, not policy.ahead or (policy.micro_batches == 1 and policy.attention != policy.feed_forward)),
        (plan.prediction.prefill, False),
    ):
        assert all(0 <= part <= 1 + 1e-9 for part in step.utilisation.values())
        assert step.utilisation[step.full] == max(step.utilisation.values())
        assert waits or step.utilisation[step.full] == pytest.approx(1)
        names = [link.name for link in hardware.links] + [d.name for d in hardware.devices] + [t.name for t in hardware.tiers]
        assert step.limit in names


@SOME
@given(models(4), machines(), WORKLOADS, st.integers(0, 1), st.integers(1, 300))
def test_more_memory_is_never_slower(model: ModelCost, hardware: Hardware, workload: Workload, tier: int, more: int):
    sizes = tuple(replace(t, size=t.size + (more * MB if i == tier else 0)) for i, t in enumerate(hardware.tiers))
    assert_never_slower(found(model, hardware, workload), found(model, replace(hardware, tiers=sizes), workload))


@SOME
@given(models(4), machines(), WORKLOADS, st.sampled_from([1.01, 2, 10]))
def test_a_faster_link_is_never_slower(model: ModelCost, hardware: Hardware, workload: Workload, factor: float):
    links = tuple(replace(link, bytes_per_second=link.bytes_per_second * factor) for link in hardware.links)
    assert_never_slower(found(model, hardware, workload), found(model, replace(hardware, links=links), workload))


@SOME
@given(models(4), machines(), WORKLOADS, st.sampled_from([1.01, 2, 10]), st.integers(0, 1))
def test_faster_memory_is_never_slower(model: ModelCost, hardware: Hardware, workload: Workload, factor: float, which: int):
    devices = tuple(replace(d, bytes_per_second=d.bytes_per_second * (factor if i == which else 1)) for i, d in enumerate(hardware.devices))
    assert_never_slower(found(model, hardware, workload), found(model, replace(hardware, devices=devices), workload))


@SOME
@given(models(4), machines(), WORKLOADS)
def test_more_streams_are_never_slower_if_the_grid_holds_the_old(model: ModelCost, hardware: Hardware, workload: Workload):
    grid = Grid((1, 2, 4, 8), (1, 2, 4))

    def planned(streams: int) -> Plan | None:
        try:
            return search(model, hardware, replace(workload, streams=streams), grid)
        except NotEnoughMemory:
            return None

    assert_never_slower(planned(4), planned(16))


@SOME
@given(models(3), machines(), WORKLOADS)
def test_nothing_else_on_the_grid_is_faster(model: ModelCost, hardware: Hardware, workload: Workload):
    """Every policy tried one by one, also with fewer weights held than fit."""
    plan = found(model, hardware, workload)
    steps = Steps(model, hardware, workload)
    room = Room(steps)
    names = [d.name for d in hardware.devices]
    for micro in (1, 4):
        for count in (1, 6):
            for attending in names:
                for feeding in names:
                    for ahead in (False, True):
                        if micro * count > workload.streams or micro not in (1, workload.streams):
                            continue
                        none = (0,) * len(hardware.tiers)
                        policy = Policy(micro * count, micro, attending, feeding, 1.0, KvType.BF16, none, ahead)
                        held = room.weights(policy)
                        if isinstance(held, NotEnoughMemory) or count not in Grid.of(workload.streams).batches:
                            continue
                        for moved in (0, held[-1] // 2):
                            fewer = (held[0] + moved, *held[1:-1], held[-1] - moved)
                            other = predict(steps, replace(policy, weight_bytes=fewer))
                            # 1 %: experts that a step nearly all chooses are not waited for
                            assert speed(plan) >= other.tokens_per_second * 0.99


def test_the_same_question_has_the_same_answer():
    model, hardware, workload = moe(), processor(3 * GIB), Workload(128, 128, 64)
    assert search(model, hardware, workload) == search(model, hardware, workload)


def test_what_fits_is_held_whole():
    plan = search(moe(), processor(8 * GIB), Workload(128, 128))
    assert plan.policy.weight_bytes == (0, moe().held_bytes)
    assert plan.prediction.limit == "memory"
    assert plan.prediction.decode.utilisation["disk"] == 0


def test_a_model_larger_than_memory_is_limited_by_the_disk():
    plan = search(moe(), processor(3 * GIB), Workload(128, 128))
    assert plan.prediction.limit == "disk"
    assert 0.4 < plan.policy.weight_share(processor(3 * GIB)) < 0.6
    assert plan.policy.ahead is False


def test_many_streams_share_what_is_read():
    one, many = (search(moe(), processor(3 * GIB), Workload(128, 128, n)) for n in (1, 256))
    assert many.prediction.tokens_per_second > 5 * one.prediction.tokens_per_second
    assert many.prediction.stream_tokens_per_second < one.prediction.stream_tokens_per_second


def test_routing_with_favourites_is_predicted_faster_for_one_stream():
    popularity = (0.5,) * 8 + (0.2,) * 16 + (0.8 / 104,) * 104
    flat = moe()
    experts = flat.layers[0].experts
    assert experts is not None
    local = replace(flat, layers=(replace(flat.layers[0], experts=replace(experts, popularity=popularity)),) * 16)
    cached = replace(flat, layers=(replace(flat.layers[0], experts=replace(experts, hits=((0.25, 0.7), (0.5, 0.9)))),) * 16)
    here, work = processor(3 * GIB), Workload(128, 128)
    rates = [search(model, here, work).prediction.stream_tokens_per_second for model in (flat, local, cached)]
    assert rates[1] > 1.3 * rates[0] and rates[2] > 1.3 * rates[0]


def test_a_popularity_like_no_popularity_changes_nothing():
    flat = moe()
    experts = flat.layers[0].experts
    assert experts is not None
    alike = replace(flat, layers=(replace(flat.layers[0], experts=replace(experts, popularity=(8 / 128,) * 128)),) * 16)
    here, work = processor(3 * GIB), Workload(128, 128, 16)
    a, b = (search(model, here, work) for model in (flat, alike))
    assert (a.policy.batch, a.policy.micro, a.policy.ahead) == (b.policy.batch, b.policy.micro, b.policy.ahead)
    assert a.prediction.tokens_per_second == pytest.approx(b.prediction.tokens_per_second)
    assert isinstance(experts, ExpertsCost)


def test_one_prompt_of_mixtral_is_computed_where_its_weights_are():
    """Below the first turning point it is no use to move weights to the GPU."""
    here = with_gpu(150 * GIB, 14 * GIB)
    one = search(mixtral(), here, Workload(128, 32)).policy
    many = search(mixtral(), here, Workload(128, 32, 2000)).policy
    assert one.feed_forward == "processor"
    assert (many.feed_forward, many.attention) == ("GPU", "processor")


def test_the_type_of_keys_and_values_is_chosen_from_those_allowed():
    wide = Workload(2000, 100, 64, kv_types=(KvType.FP32,))
    both = replace(wide, kv_types=(KvType.FP32, KvType.BF16))
    here = processor(4 * GIB)
    assert search(moe(), here, wide).policy.kv_type is KvType.FP32
    assert search(moe(), here, both).policy.kv_type is KvType.BF16


@pytest.mark.parametrize(
    ("hardware", "what"), [(processor(16 * MB), "memory"), (with_gpu(GIB, GIB), "memory"), (processor(100 * MB), "memory")]
)
def test_what_is_missing_is_said_in_bytes(hardware: Hardware, what: str):
    """The least that a tier needs: with what the message asks for, it works."""
    with pytest.raises(NotEnoughMemory, match="missing") as caught:
        search(moe(), hardware, Workload(4000, 4000))
    assert what in str(caught.value)
    tier = next(t for t in hardware.tiers if t.size == caught.value.available)
    more = tuple(replace(t, size=caught.value.needed + 1) if t is tier else t for t in hardware.tiers)
    search(moe(), replace(hardware, tiers=more), Workload(4000, 4000))


def test_more_memory_until_something_else_is_the_limit():
    here, work, grid = processor(2 * GIB), Workload(128, 128), Grid((1,), (1,))
    outlook = more_memory(moe(), here, work, "memory", grid)
    assert outlook is not None
    assert outlook.plan.prediction.limit == "memory"
    assert 4.5 * GIB < outlook.size < 6.5 * GIB
    below = replace(here, tiers=(here.tiers[0], replace(here.tiers[1], size=int(outlook.size / 1.031))))
    assert search(moe(), below, work, grid).prediction.limit == "disk"


def test_where_nothing_changes_it_says_so():
    assert more_memory(moe(), processor(8 * GIB), Workload(128, 128), "memory", Grid((1,), (1,))) is None


@pytest.mark.parametrize("wrong", [{"prompt": 0}, {"answer": 0}, {"streams": 0}, {"chunk": -1}, {"kv_types": ()}])
def test_what_is_no_workload_is_refused(wrong: dict[str, object]):
    with pytest.raises(ValueError, match="workload"):
        Workload(**({"prompt": 1, "answer": 1} | wrong))  # pyright: ignore[reportArgumentType]


@given(st.integers(1, 5000))
def test_the_grid_reaches_from_one_to_all_streams_in_small_steps(streams: int):
    sizes = Grid.of(streams).micro
    assert sizes[0] == 1 and sizes[-1] == streams
    assert all(a < b <= max(a + 1, 1.2 * a + 1) for a, b in pairwise(sizes))
