"""What waits at a copy, or stays on a node, of which the head or the node has heard the last."""

from __future__ import annotations

import asyncio

import pytest

from shoal.control import messages as control
from shoal.node.model_engine import ModelEngine
from shoal.pipeline.token_stream import TokenStream
from shoal.testing import toy
from tests.support.city import City
from tests.support.town import LAYERS, play


async def one_of_two_copies(town: City) -> ModelEngine:
    """There is one node, and so one of them serves."""
    engine = town.serve("toy", LAYERS, replicas=2)
    town.start("a")
    await town.until(lambda: any(runner.serving for runner in engine.copies))
    return engine


def test_what_was_taken_up_by_a_copy_that_never_serves_goes_on_at_another() -> None:
    """A head that takes another one's place deals the unfinished answers to all copies before any of them serves."""

    async def scenario(town: City) -> None:
        engine = await one_of_two_copies(town)
        (waiting,) = [runner for runner in engine.copies if not runner.serving]
        request = town.request("unfinished", 20)
        stream = TokenStream(request)
        waiting.requests.take_up(stream)
        assert [chunk.token async for chunk in stream] == toy.expected(request, LAYERS)[0]

    play(scenario, City)


def test_a_node_drops_what_was_unloaded_while_its_link_was_being_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(town: City) -> None:
        engine = town.serve("toy", LAYERS)
        town.start("a")
        await town.serving(engine)
        agent, unloaded = town.agents["a"], asyncio.Event()
        probe = agent._probe

        async def late(message: control.Probe) -> None:
            await unloaded.wait()
            await probe(message)

        monkeypatch.setattr(agent, "_probe", late)
        await town.replace_head()
        town.serve("toy", LAYERS)
        await town.until(lambda: town.head.coordinator.roster.measuring)
        assert agent._parts.keys() == {"toy/1"}, "it is kept for the model that is served here, too"
        await town.head.unload("toy", "the model 'toy' was unloaded")
        unloaded.set()
        await town.until(lambda: town.head.members)
        await town.until(lambda: not agent._parts)

    play(scenario, City)


def test_a_part_that_holds_nothing_goes_with_its_head() -> None:
    """The next head is told what a node holds, and could not have it dropped."""

    async def scenario(town: City) -> None:
        engine = town.serve("toy", LAYERS)
        town.start("a")
        await town.serving(engine)
        agent = town.agents["a"]
        agent._told(control.Load(pipeline="other/1", epoch=99, end_layer=1, layers=LAYERS), asyncio.Event())
        async with agent._parts["other/1"]._changing:  # it comes to nothing before the head is gone
            await asyncio.sleep(0.1)
            await town.replace_head()
            await asyncio.sleep(0.1)
        await town.serving(town.serve("toy", LAYERS))
        assert agent._parts.keys() == {"toy/1"}

    play(scenario, City)
