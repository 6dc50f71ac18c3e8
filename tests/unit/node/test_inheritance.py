from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from shoal.config import ApiSettings, Codec, EngineSettings, HeadSettings, ModelSection, Precision
from shoal.control.messages import Serves
from shoal.errors import ConfigError, RemoteProtocolError
from shoal.node import successor as successor_module
from shoal.node.inheritance import RULES, bequeathed, inherited, inherited_models
from shoal.node.model_engine import ModelOffer
from shoal.node.successor import Successor
from shoal.scheduler.limits import Batching
from shoal.testing.clock import SimulatedLoop

LEADER = HeadSettings(
    engine=EngineSettings(model="a,b", slots=7),
    api=ApiSettings(port=1),
    host="127.0.0.1",
    control_port=1,
    spread=True,
    resume=12.5,
)
OWN = HeadSettings(
    engine=EngineSettings(model="mine"),
    api=ApiSettings(port=2),
    control_port=2,
    replicas=3,
    sections=(ModelSection("a", "here", {"slots": 3, "replicas": 9}),),
)


def engine(name: str, copies: int, pinned: frozenset[str] = frozenset(), **settings: Any) -> Any:
    offer = SimpleNamespace(engine=EngineSettings(model=name, **settings), priority=len(name) + copies, batching=Batching(copies, 0.25))
    return SimpleNamespace(name=name, pinned=pinned, offer=offer, copies=SimpleNamespace(kept=dict.fromkeys(range(copies))))


ENGINES = [engine("a", 2, precision=Precision.Q8, activations=Codec.BF16, slots=7), engine("b", 1, frozenset({"n2", "n1"}))]


def test_a_successor_has_the_rules_of_the_head_before_and_its_own_places() -> None:
    rules, _ = bequeathed(LEADER, ENGINES)
    now = inherited(OWN, rules)
    assert all(getattr(now, name) == getattr(LEADER, name) for name in RULES)
    assert (now.control_port, now.api, now.engine) == (2, OWN.api, OWN.engine)


def test_models_run_as_they_did() -> None:
    _, models = bequeathed(LEADER, ENGINES)
    first, second = inherited_models(models)
    assert (first.reference, first.replicas, second.pinned) == ("a", 2, ("n1", "n2"))
    assert first.settings(OWN.engine) == ENGINES[0].offer.engine


@pytest.mark.parametrize("text", ["", "[", "{}", '[{"engine": 3}]'])
def test_what_no_head_says_is_an_error_of_the_other_side(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        inherited_models(text)


def test_a_rule_that_cannot_be_is_an_error() -> None:
    with pytest.raises(RemoteProtocolError):
        inherited(OWN, '{"spares": "many"}')
    with pytest.raises(ConfigError):
        inherited(OWN, '{"spares": -1}')


def test_a_successor_prepares_what_it_learns_and_each_model_once() -> None:
    async def go() -> None:
        asked = list[str]()

        async def offered(reference: str, settings: HeadSettings) -> ModelOffer:
            asked.append(reference)
            assert not settings.sections and settings.first_replicas == 1, "what the leader does counts"
            await asyncio.sleep(0)
            if reference == "b":
                raise ConfigError("it is not here")
            return cast("ModelOffer", ModelOffer(cast("Any", reference), settings.engine, settings.replicas))

        successor = Successor(OWN, [], offered)
        assert successor.ready and not successor.offers
        rules, models = bequeathed(LEADER, ENGINES)
        successor.learn(Serves(settings=rules, models=models, authority="PEM"))
        assert not successor.ready
        while not successor.ready:  # noqa: ASYNC110 - the work of another task
            await asyncio.sleep(0)
        (offer,) = successor.offers  # the other one cannot be had, which keeps nobody from leading
        assert (offer.model, offer.replicas, offer.engine.slots, successor.authority) == ("a", 2, 7, "PEM")
        assert (offer.priority, offer.batching) == (3, Batching(2, 0.25))
        successor.learn(Serves(settings=rules, models=models))
        await asyncio.sleep(0.01)
        assert asked.count("a") == 1
        await successor.close()

    asyncio.run(go())


def test_who_has_none_of_the_models_does_not_lead() -> None:
    async def go() -> None:
        there = False

        async def offered(reference: str, settings: HeadSettings) -> ModelOffer:
            if not there:
                raise ConfigError("it is not here")
            return cast("ModelOffer", ModelOffer(cast("Any", reference), settings.engine, settings.replicas))

        successor = Successor(OWN, [], offered)
        rules, models = bequeathed(LEADER, ENGINES)
        successor.learn(Serves(settings=rules, models=models))
        await asyncio.sleep(1)
        assert not successor.ready
        there = True
        await asyncio.sleep(successor_module._AGAIN)
        assert successor.ready and len(successor.offers) == 2
        successor.learn(Serves(settings=rules, models="[]"))
        assert successor.ready, "the leader has none, either"
        await successor.close()

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(go())


def test_a_successor_says_why_it_prepares_no_more_and_leaves_nothing_behind() -> None:
    async def go() -> None:
        begun, ended = list[str](), list[str]()

        async def offered(reference: str, settings: HeadSettings) -> ModelOffer:
            begun.append(reference)
            if reference == "b":
                raise ZeroDivisionError
            try:
                await asyncio.sleep(len(begun))
            finally:
                await asyncio.sleep(1)
                ended.append(reference)
            return cast("ModelOffer", ModelOffer(cast("Any", reference), settings.engine, settings.replicas))

        successor = Successor(OWN, [], offered)
        rules, models = bequeathed(LEADER, ENGINES)
        for _ in range(2):
            successor.learn(Serves(settings=rules, models=models))
            await asyncio.sleep(0.1)
        await successor.close()
        assert (begun, ended) == (["a", "a"], ["a", "a"])
        with capture_logs() as logs:
            successor.learn(Serves(settings=rules, models=models))
            await asyncio.sleep(10)
        assert [line["log_level"] for line in logs] == ["error"]

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(go())
