"""How long steps take: against arithmetic by hand, and against what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import KvType
from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.hardware import Curve, Hardware, TierLink
from shoal.placement.policy import Grid, predict, search
from shoal.placement.steps import Steps, mean_context
from shoal.placement.workload import Policy, Workload
from tests.support.nodes import MB
from tests.support.plans import GIB, curve, mixtral, moe, processor, with_gpu


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 80))
def test_the_mean_context_is_the_mean_of_all(first: int, count: int, window: int):
    seen = [min(position + 1, window or position + 1) for position in range(first, first + count)]
    assert mean_context(first, first + count, window) == pytest.approx(sum(seen) / count)


def dense(layers: int = 4, size: int = 10 * MB, head: int = 0, window: int = 0) -> ModelCost:
    """Two operations per byte and row; tokens with 1000 bytes and 4000 operations per layer."""
    return ModelCost((LayerCost(Matrices(size, size), 1000, 4000, window),) * layers, Matrices(head, head), 4000, 0)


def on_processor(batch: int, micro: int, held: tuple[int, ...], ahead: bool = True, kv_share: float = 1.0) -> Policy:
    return Policy(batch, micro, "processor", "processor", kv_share, KvType.BF16, held, ahead)


def test_one_row_waits_for_memory_and_many_for_arithmetic():
    """20 GB/s and 300 G operations/s: 10 MB take 0.5 ms to read, and 0.07 ms of arithmetic for each row."""
    model, here, work = dense(), processor(GIB), Workload(99, 1)
    held, times = (0, model.held_bytes), Steps(model, here, work)
    one, many = times.decode(on_processor(1, 1, held)), times.decode(on_processor(64, 64, held))
    attending = max(100 * 1000 / 20e9, 100 * 4000 / 300e9)
    assert one.seconds == pytest.approx(4 * (10 * MB / 20e9 + attending))
    assert many.seconds == pytest.approx(4 * 64 * (20 * MB / 300e9 + attending))
    assert (one.limit, many.limit, one.full, many.full) == ("memory", "processor", "processor", "processor")


def test_micro_batches_read_the_weights_again_and_each_layer_costs_its_overhead():
    model, work = dense(head=5 * MB), Workload(1, 1)
    here = processor(GIB, flops=1e15)
    slow = replace(here, devices=(replace(here.devices[0], layer_seconds=1e-3),))
    held, memory = (0, model.held_bytes), 45 * MB / 20e9
    attending = 8 * 2 * 1000 * 4 / 20e9
    assert Steps(model, here, work).decode(on_processor(8, 4, held)).seconds == pytest.approx(2 * memory + attending)
    assert Steps(model, slow, work).decode(on_processor(8, 4, held)).seconds == pytest.approx(2 * memory + attending + 8e-3)


def test_a_window_bounds_what_attention_reads():
    here, work = processor(GIB, flops=1e15), Workload(5000, 1)
    held = (0, dense().held_bytes)
    far = Steps(dense(), here, work).decode(on_processor(1, 1, held)).seconds
    near = Steps(dense(window=1000), here, work).decode(on_processor(1, 1, held)).seconds
    assert far - near == pytest.approx(4 * 4001 * 1000 / 20e9)


def test_weights_that_are_read_ahead_hide_behind_computing_or_the_other_way_round():
    model, work = dense(), Workload(1, 1)
    for held, limit in ((38 * MB, "memory"), (10 * MB, "disk")):
        step = Steps(model, processor(GIB), work).decode(on_processor(1, 1, (model.held_bytes - held, held)))
        computing, reading = 4 * (10 * MB / 20e9 + 2 * 4000 / 300e9), (40 * MB - held) / 1.4e9
        assert step.limit == limit
        assert step.seconds == pytest.approx(max(computing, reading), rel=1e-3)
        assert step.utilisation[step.full] == 1
        assert step.utilisation["disk"] == pytest.approx(reading / step.seconds)


def test_experts_that_are_missed_are_waited_for():
    """Of eight chosen experts of 1 MB half are held: 4 MB at 1 GB/s, while gate and up of the four held ones are computed; then those of
    the last, and down of all."""
    layer = LayerCost(Matrices(2 * MB, 2 * MB), 1000, 4000, experts=ExpertsCost(128, 8, Matrices(MB, MB)))
    model = ModelCost((layer,) * 3, Matrices(0, 0), 4000, 0)
    held = 3 * (2 + 64) * MB
    here = processor(GIB, disk=1e9, pace=10e9, flops=1e15)
    step = Steps(model, here, Workload(1, 1)).decode(on_processor(1, 1, (model.held_bytes - held, held), ahead=False))
    fetching, one = 4 * MB / 1e9, MB / 10e9
    assert step.seconds == pytest.approx(3 * (2 * MB / 10e9 + 2 * 1000 / 10e9 + fetching + 2 / 3 * one + 8 / 3 * one))
    assert (step.full, step.limit) == ("disk", "disk")
    assert step.utilisation["disk"] == pytest.approx(3 * fetching / step.seconds)
    late = replace(here, links=(replace(here.links[0], seconds=1e-3),))
    waited = Steps(model, late, Workload(1, 1)).decode(on_processor(1, 1, (model.held_bytes - held, held), ahead=False))
    assert waited.seconds - step.seconds == pytest.approx(3e-3 * (1 - 0.5**8))  # it may be that none is missed


def test_copies_into_staging_buffers_take_the_processor_s_memory():
    model, work = dense(), Workload(1, 1)
    here = processor(GIB, disk=5e9)
    copying = replace(here, links=(TierLink("disk", 5e9, copies=2),))
    policy = on_processor(1, 1, (20 * MB, 20 * MB))
    plain, copied = Steps(model, here, work).decode(policy), Steps(model, copying, work).decode(policy)
    busy = [step.utilisation["processor"] * step.seconds for step in (plain, copied)]
    assert busy[1] - busy[0] == pytest.approx(2 * 20 * MB / 20e9)


def test_keys_and_values_in_a_slower_tier_are_read_for_every_step():
    model, here, work = dense(), processor(GIB), Workload(999, 1)
    held = (0, model.held_bytes)
    step = Steps(model, here, work).decode(on_processor(8, 8, held, kv_share=0.25))
    reading = 8 * 0.75 * 1000 * 1000 * 4 / 1.4e9
    assert step.seconds == pytest.approx(reading)
    assert step.limit == "disk"
    wide = replace(on_processor(8, 8, held, kv_share=0.25), kv_type=KvType.FP32)
    assert Steps(model, here, work).decode(wide).seconds == pytest.approx(2 * reading)


def test_two_devices_work_at_once_only_with_two_micro_batches():
    model, here, work = dense(), with_gpu(GIB, GIB, paces=(10e9, 100e9)), Workload(4000, 1)
    held = (0, model.held_bytes)
    policy = Policy(8, 8, "processor", "GPU", 1.0, KvType.BF16, held, True)
    times = Steps(model, here, work)
    once, twice = times.decode(policy), times.decode(replace(policy, micro=4))
    attending = 8 * 4001 * 1000 * 4 / 10e9
    assert once.seconds == pytest.approx(attending + 40 * MB / 100e9, rel=1e-3)
    assert twice.seconds == pytest.approx(attending)
    assert (twice.full, twice.limit) == ("processor", "memory")


def test_few_rows_for_each_expert_are_computed_at_the_speed_of_few_rows():
    """512 rows choose 8 of 128 experts: 32 rows for each."""
    model, work = moe(layers=2), Workload(1, 1)
    here = processor(10 * GIB, pace=1e15)
    points = curve((1, 10e9), (32, 100e9), (512, 1000e9))
    slow = replace(here, devices=(replace(here.devices[0], curves=(("q4", points),)),))
    layer = model.layers[0]
    assert layer.experts is not None
    held = (0, model.held_bytes)
    seconds = Steps(model, slow, work).decode(on_processor(512, 512, held)).seconds
    experts = layer.experts.each.flops(512 * 8) / 100e9
    always = layer.always.flops(512) / 1000e9
    attention = 512 * 2 * layer.attention / 10e9  # each row is the only one of its sequence
    assert seconds == pytest.approx(2 * (experts + always + attention), rel=1e-3)


def test_a_prompt_is_computed_in_chunks_and_streamed_weights_are_read_once():
    model, here = dense(head=10 * MB), processor(GIB, disk=1e9, flops=1e15)
    held = 10 * MB
    policy = on_processor(4, 2, (40 * MB, held))
    step = Steps(model, here, Workload(1024, 1, chunk=256)).prefill(policy)
    assert step.seconds == pytest.approx(max(40 * MB / 1e9, 16 * 40 * MB / 20e9 + 2 * 10 * MB / 20e9), rel=0.3)
    long = Steps(model, processor(GIB), Workload(1024, 1, chunk=1024)).prefill(on_processor(1, 1, (0, 50 * MB)))
    flops = 1024 * (2 * 40 * MB + 4 * 4000 * 1025 / 2)
    assert long.seconds == pytest.approx(flops / 300e9, rel=0.01)
    assert long.limit == "processor"


@pytest.mark.parametrize(("share", "measured"), [(0.75, 10.6), (0.5, 8.0), (0.25, 5.3)])
def test_what_a_streaming_prototype_did(share: float, measured: float):
    """Sixteen layers of 128 experts of 2.65 MB, eight chosen, evenly: tokens per second of one stream, with that share of the file in
    memory, 1.4 GB/s from disk after 1 ms and 21 GB/s from memory. The prototype had no attention, router or head. Within 20 %."""
    model = moe()
    bare = replace(model.layers[0], always=Matrices(0, 0), kv_bytes=0, attention=0)
    model = ModelCost((bare,) * 16, Matrices(0, 0), 8192, 0)
    here = processor(10 * GIB, pace=21e9)
    here = replace(here, links=(TierLink("disk", 1.4e9, 1e-3),))
    held = int(share * model.held_bytes)
    policy = on_processor(1, 1, (model.held_bytes - held, held), ahead=False)
    assert 1 / Steps(model, here, Workload(1, 1)).decode(policy).seconds == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(("rows", "measured"), [(1, 1.16e-3), (8, 7.3e-3), (512, 136e-3)])
def test_what_the_kernels_took_for_a_layer_of_experts(rows: int, measured: float):
    """Milliseconds of two threads with AVX-512 VNNI for the feed-forward part of Qwen3-30B-A3B. Within 15 %."""
    layer = replace(moe().layers[0], always=Matrices(0, 0), kv_bytes=0, attention=0)
    model = ModelCost((layer,), Matrices(0, 0), 8192, 0)
    here = processor(10 * GIB, pace=19e9)
    points = Curve((1, 4, 32, 512), (100e9, 200e9, 290e9, 342e9))
    here = replace(here, devices=(replace(here.devices[0], curves=(("q4", points),)),))
    seconds = Steps(model, here, Workload(1, 1)).decode(on_processor(rows, rows, (0, model.held_bytes))).seconds
    assert seconds == pytest.approx(measured, rel=0.15)


def test_the_optimiser_of_moe_lightning_gives_the_same_time_for_its_policy():
    """Its artifact prints, for 324 x 14 with 5.6 % of the experts on the GPU, 0.1549 s per layer, link-bound, 4.957 s per pass."""
    model = mixtral()
    experts = 32 * 8 * 3 * 4096 * 14336 * 2
    held = model.held_bytes - experts + int(0.055884688 * experts)
    policy = Policy(324 * 14, 324, "processor", "GPU", 1.0, KvType.BF16, (model.held_bytes - held, held), True)
    here = with_gpu(200 * GIB, 24 * GIB, 17179869184, (81604378624, 306016419840), (1.6e12, 104e12))
    step = Steps(model, here, Workload(77, 32)).decode(policy)
    hidden = 324 * 14 * 32 * 8192 / 17179869184  # of which it takes no account: results of attention, on the same link
    assert step.seconds == pytest.approx(4.957 + hidden, rel=1e-3)
    assert step.limit == "link"


def test_one_stream_alone_is_predicted_with_what_the_batch_holds():
    model, here = moe(), processor(3 * GIB)
    steps = Steps(model, here, Workload(128, 128, 64))
    plan = search(model, here, Workload(128, 128, 64), Grid((1, 8, 64), (1,)))
    found = predict(steps, plan.policy)
    alone = replace(plan.policy, batch=1, micro=1, ahead=False)
    assert found.stream_tokens_per_second == pytest.approx(1 / steps.decode(alone).seconds)
    assert found.tokens_per_second < found.decode_tokens_per_second
    assert found == plan.prediction


def test_three_tiers_are_one_more_link():
    """What neither the GPU nor memory holds comes from disk over both links."""
    base = with_gpu(64 * MB, 64 * MB, link=10e9)
    disk = processor(MB).tiers[0]
    devices = tuple(replace(device, tier=device.tier + 1) for device in base.devices)
    here = Hardware("three", (disk, *base.tiers), (TierLink("disk", 1e9), *base.links), devices)
    model = dense(layers=20)
    held = (100 * MB, 60 * MB, 40 * MB)
    step = Steps(model, here, Workload(1, 1)).decode(Policy(1, 1, "GPU", "GPU", 1.0, KvType.BF16, held, True))
    assert step.seconds == pytest.approx(100 * MB / 1e9)
    assert step.utilisation["link"] == pytest.approx(160 * MB / 10e9 / step.seconds)
    assert step.limit == "disk"


def test_a_core_that_computes_does_not_read_on():
    """10 MB at 10 GB/s with up to two rows and at 5 GB/s with more, and 20 MB of operations for each row on top."""
    model, work = dense(layers=1), Workload(1, 1)
    one = replace(processor(GIB).devices[0], reading=(("weights", curve((2, 10e9), (3, 5e9))), ("attention", curve((1, 1e9)))))
    here = replace(processor(GIB), devices=(one,))
    for rows, pace in ((2, 10e9), (8, 5e9)):
        step = Steps(model, here, work).decode(on_processor(rows, rows, (0, model.held_bytes)))
        attending = rows * 2 * (1000 / 1e9 + 4000 / 300e9)
        assert step.seconds == pytest.approx(10 * MB / pace + rows * 20 * MB / 300e9 + attending)


def test_queries_that_share_keys_attend_faster():
    model = replace(dense(), layers=(replace(dense().layers[0], sharing=4),) * 4)
    one = replace(processor(GIB).devices[0], curves=(("q4", curve((1, 1e15))), ("attention", curve((1, 10e9), (4, 40e9)))))
    here, held = replace(processor(GIB), devices=(one,)), (0, model.held_bytes)
    work = Workload(10**6, 1)
    alone, shared = (Steps(m, here, work).decode(on_processor(1, 1, held)).seconds for m in (dense(), model))
    context = 10**6 + 1
    assert alone - shared == pytest.approx(4 * context * 4000 * (1 / 10e9 - 1 / 40e9))


def test_the_processor_takes_what_was_read():
    """Of four layers of 10 MB two are read one at a time; the link rests while the processor checks a part of 10 MB, for 2 ms."""
    model, work = dense(), Workload(1, 1)
    link = TierLink("disk", 1e9, seconds=1e-3, copies=2, read_seconds=1e-3)
    here = replace(processor(GIB, pace=20e9, flops=1e15), links=(link,))
    step = Steps(model, here, work).decode(on_processor(1, 1, (20 * MB, 20 * MB)))
    assert step.limit == "disk"
    assert step.seconds == pytest.approx(2 * (10 * MB / 1e9 + 1e-3 + 2 * 10 * MB / 20e9 + 1e-3))
    assert step.utilisation["disk"] < 1


def test_a_layer_whose_experts_are_not_all_held_stops_at_its_router():
    model, work = moe(layers=3), Workload(1, 1)
    here = processor(64 * GIB)
    late = replace(here, devices=(replace(here.devices[0], chosen_seconds=1e-3),))
    for held, extra in ((model.held_bytes, 0.0), (model.held_bytes // 2, 3e-3)):
        policy = on_processor(1, 1, (model.held_bytes - held, held), ahead=False)
        plain, slow = (Steps(model, machine, work).decode(policy).seconds for machine in (here, late))
        assert slow - plain == pytest.approx(extra)
