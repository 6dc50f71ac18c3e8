"""What once went wrong in the core: each docstring tells how, and the test holds that it no longer does."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from shoal.config import HeadSettings, from_environment
from shoal.errors import ConfigError, LocalProtocolError, NotEnoughMemory, RemoteProtocolError, StageLost
from shoal.executor.sampler import Sampler
from shoal.executor.sequences import Sequences
from shoal.membership.events import Tick
from shoal.membership.instructions import LoadStage
from shoal.placement.partition import place
from shoal.placement.profile import Demand, Links, ModelCost, NodeProfile
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan
from shoal.transport import tcp
from shoal.transport.base import FrameStream
from shoal.wire import messages
from shoal.wire.frame import Frame, Kind
from tests.support.route import Route, collect, play, turns
from tests.support.toy_stage import Toy, limits, request
from tests.test_membership import joined, serving
from tests.test_placement import everything, model

MB = 1 << 20


def test_losing_the_link_to_the_first_stage_breaks_the_route():
    """Nobody reads `first`: while a result is due the driver never hears that stage 0 hung up."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        route.driver.submit(request("a", [1], 9))
        await turns()
        route.steps.abort()
        with pytest.raises(StageLost):
            await running

    play(scenario, work=False)


def test_a_result_that_is_queued_when_the_driver_failed_is_no_crash():
    """cut() and a result at the same time: the result is of a route that is gone, and what is raised is StageLost."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        route.driver.submit(request("a", [1], 9))
        await turns()
        route.driver.cut("a node left")
        await route.one()
        with pytest.raises(StageLost):
            await running

    play(scenario, work=False)


def test_a_step_is_found_where_one_sequence_gives_way_and_another_can_run():
    """schedule() tries one draw (depth 2, two running); that one preempts itself, and None is the answer."""
    toy = Toy(limits(blocks=8, block_tokens=1, lanes=2, step_tokens=2, depth=2))
    toy.add(request("r1", [1], 6, n=2, seed=1))
    for _ in range(40):
        if toy.step() is None:
            break
    assert toy.scheduler.running == 0


def test_a_choice_ended_twice_does_not_end_the_other():
    """end_choice() after the choice's last chunk was queued counts it twice; the stream of n=2 ends early."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        stream = route.driver.submit(request("a", [1], 2, n=2))
        await turns(200)
        first = await anext(stream)
        stream.end_choice(first.choice)
        rest = await collect(stream)
        assert [c.finish for c in rest if c.choice != first.choice][-1:] != []
        assert sum(c.choice != first.choice for c in rest) == 2

    play(scenario)


def test_a_closed_stream_ends():
    """After close() a stream is empty for ever instead of over."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        stream = route.driver.submit(request("a", [1], 9))
        stream.close()
        assert await asyncio.wait_for(collect(stream), 0.1) == []

    play(scenario, work=False)


@pytest.mark.parametrize("value", ["false", "0", "no"])
def test_a_flag_is_off_where_the_environment_says_so(value: str):
    """bool('false') is True."""
    assert from_environment(HeadSettings, {}, {"SHOAL_SPREAD": value}).spread is False


def test_a_heartbeat_is_a_number():
    with pytest.raises(ConfigError):
        HeadSettings(heartbeat=float("nan"))


@pytest.mark.parametrize("temperature", [1e-46, 1e-39])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float):
    """float32(1e-46) is 0: 0/0, and the last token of the vocabulary is drawn."""
    sampler = Sampler()
    sampler.open(Opened(1, SamplingParams(temperature=temperature), [], []))
    assert sampler.sample(1, 0, np.array([1, 9, 3, 2], np.float32)).token == 1


def test_more_alternatives_than_tokens_are_all_of_them():
    sampler = Sampler()
    sampler.open(Opened(1, SamplingParams(temperature=0, logprobs=20), [], []))
    assert len(sampler.sample(1, 0, np.zeros(4, np.float32)).alternatives) == 4


def node(name: str, memory: int, speed: float = 10e9) -> NodeProfile:
    return NodeProfile(name, memory, speed, 1e12)


def test_one_lane_is_not_split_for_nothing():
    """A lone sequence visits every stage for every token: two equal nodes cannot be faster than one."""
    cost = ModelCost((10 * MB,) * 6, 0, 1024, 10 * MB, 0, 4096, MB)
    placement = place([node("a", 900 * MB), node("b", 900 * MB)], Links(), cost, Demand(1, 256, 256))
    assert len(placement.stages) == 1
    assert placement.tokens_per_second <= 1 / placement.latency * 1.001


@pytest.mark.parametrize("big", range(5))
def test_a_large_head_goes_to_the_node_that_holds_it(big: int):
    """Above four nodes the one with most memory always comes first, the head always last."""
    nodes = [node(f"n{i}", (600 if i == big else 35) * MB, 10e9 + i) for i in range(5)]
    cost = ModelCost((30 * MB,) * 5, 400 * MB, 64, 30 * MB, 400 * MB, 4096, MB)
    try:
        placement = place(nodes, Links(), cost, Demand(8, 256, 256), at_least=5)
    except NotEnoughMemory as error:
        pytest.fail(str(error))
    assert placement.stages[-1].node == f"n{big}"


def test_five_nodes_are_placed_nearly_as_well_as_can_be():
    """Above four nodes only the fastest and the largest first are tried: here a fast node that must come last is missed."""
    rng = random.Random(1)
    for _ in range(20):
        speeds = [(rng.randint(15, 80) * MB, rng.choice([1e9, 3e9, 1e10, 4e10])) for _ in range(5)]
        nodes = [node(f"n{i}", memory, speed) for i, (memory, speed) in enumerate(speeds)]
        cost, demand = model(5, head=rng.randint(0, 60) * MB), Demand(8, 256, 256)
        if all_of_them := everything(nodes, Links(), cost, demand, 256):
            best = max(p.tokens_per_second for p in all_of_them)
            assert place(nodes, Links(), cost, demand).tokens_per_second >= 0.8 * best


def test_what_is_missing_is_said_where_no_split_fits():
    cost = ModelCost((30 * MB,) * 2, 0, 64, 1, 1, 1, MB)
    with pytest.raises(NotEnoughMemory) as refused:
        place([node(f"n{i}", 25 * MB) for i in range(3)], Links(), cost, Demand(1, 64, 64))
    assert refused.value.needed > refused.value.available


def test_nodes_that_fall_silent_together_are_not_asked_to_load():
    """_tick handles them one by one: the second one is still a member when the first one's route is replaced."""
    c = serving(1, 2, 3)
    c.handle(joined(4), 8.5)
    c.members[3].heard = 8.5
    out = c.handle(Tick(), 9)
    assert {i.node for i in out if isinstance(i, LoadStage)} == {3, 4}
    assert c.epoch == 2


def test_a_token_outside_the_integers_is_a_protocol_error():
    """OverflowError escapes; StageService then dies without telling anyone."""
    with pytest.raises(RemoteProtocolError):
        Sequences(4).apply(StepPlan(0, [], [], [], [], [Chunk(1, 0, [2**40], [0], True)]))


def test_a_sequence_twice_in_a_step_is_a_protocol_error():
    chunk = Chunk(1, 0, [1], [0], True)
    with pytest.raises(RemoteProtocolError):
        Sequences(4).apply(StepPlan(0, [], [], [], [], [chunk, chunk]))


def test_text_that_is_no_text_is_a_protocol_error():
    """A msgpack string of bad UTF-8."""
    meta = b"\x82\xa7message\xa1\xff\xa5stage\x01"
    with pytest.raises(RemoteProtocolError):
        messages.decode_error(meta)


def test_a_header_out_of_range_is_this_sides_fault():
    with pytest.raises(LocalProtocolError):
        Frame(Kind.STEP, epoch=2**32).buffers()


def test_an_abort_is_no_clean_end_over_tcp():
    """Over memory it is ConnectionError; over TCP the peer reads EOFError, as after close()."""

    async def scenario() -> None:
        async def handler(stream: FrameStream) -> None:
            await stream.receive()
            stream.abort()

        listener = await tcp.listen("127.0.0.1", 0, handler)
        left = await tcp.connect("127.0.0.1", listener.port, 5)
        await left.send(Frame(Kind.PING))
        try:
            with pytest.raises(ConnectionError):
                await left.receive()
        finally:
            left.abort()
            await listener.close()

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_what_a_handler_sent_arrives_though_it_returns_at_once():
    """`the stream is closed when it returns`: it is aborted, and what the kernel did not take yet is lost."""

    async def scenario() -> None:
        async def handler(stream: FrameStream) -> None:
            sending = asyncio.ensure_future(stream.send(Frame(Kind.ERROR, body=bytes(32 << 20))))
            await turns()
            sending.cancel()

        listener = await tcp.listen("127.0.0.1", 0, handler)
        left = await tcp.connect("127.0.0.1", listener.port, 5)
        left.trust()
        try:
            assert (await left.receive()).kind is Kind.ERROR
        finally:
            left.abort()
            await listener.close()

    asyncio.run(asyncio.wait_for(scenario(), 5))
