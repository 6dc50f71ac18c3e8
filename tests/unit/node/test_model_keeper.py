"""Models that come because a request asks for them, and go because nobody does or because another needs their memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shoal.cli.cluster import offered as offered_at_start
from shoal.config import EngineSettings, HeadSettings, ModelSection
from shoal.errors import ConfigError, NotReady, UnknownModel, UserError
from shoal.models.description import Description
from shoal.node.model_engine import ModelEngine, ModelOffer
from shoal.node.model_keeper import ModelKeeper, offered
from shoal.observed.models import RegisteredModel
from shoal.serving.registry_store import RegistryStore
from shoal.testing import toy
from tests.support.city import City
from tests.support.town import play

SIZES = {"small": 3, "other": 4, "large": 6, "wide": 9, "huge": 200}
"""Layers; two nodes of the town hold about 16."""


class ToyKeeper(ModelKeeper):
    """Of toys, which have no files."""

    def _record(self, engine: ModelEngine) -> None:
        self._references[engine.name] = engine.name

    def look(self) -> None:
        self._references |= {name: name for name in SIZES}


async def read(reference: str, settings: HeadSettings) -> ModelOffer:
    await asyncio.sleep(1)  # to fetch it
    if reference not in SIZES:
        raise UserError(f"{reference}: no such file")
    said = next((section for section in settings.sections if section.name == reference), None)
    description = Description(reference, reference, Path(reference), toy.spec(SIZES[reference]), None, None)
    return ModelOffer.of(description, reference, settings.of_model(said))


def test_what_is_said_of_a_model_is_checked_before_it_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("shoal.node.model_keeper.describe", fetched.append)
    monkeypatch.setattr("shoal.cli.cluster.described", fetched.append)
    twice = HeadSettings(engine=EngineSettings(model="org/x"), sections=(section("org/x"), section("hf:org/x")))
    with pytest.raises(ConfigError, match="has a section already"):
        asyncio.run(offered("org/x", twice))
    with pytest.raises(ConfigError, match="has a section already"):
        asyncio.run(offered_at_start(twice, asyncio.Event()))
    assert fetched == []


class Kept(City):
    """folder: for the registry."""

    def __init__(self, folder: Path, **settings: object) -> None:
        super().__init__(**settings)
        self.store = RegistryStore(folder)

    async def open(self) -> None:
        await super().open()
        self.keeper = ToyKeeper(self.head, self.settings, self.store, read)
        self.keeper.look()
        self.running_keeper = asyncio.ensure_future(self.keeper.run())

    async def close(self) -> None:
        assert not self.running_keeper.done(), "it looks at the models until the head ends"
        self.running_keeper.cancel()
        await asyncio.gather(self.running_keeper, return_exceptions=True)
        await super().close()

    @property
    def loaded(self) -> list[str]:
        return [*self.head.engines]


def section(name: str, **values: object) -> ModelSection:
    return ModelSection(name, f"config.toml:1: [models.{name}]", values)


def acted(folder: Path, scenario: Callable[[Kept], Awaitable[None]], **settings: object) -> None:
    play(scenario, lambda **given: Kept(folder, **given), **settings)


def test_a_request_loads_a_model_and_waits_for_it(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        await city.until(lambda: city.head.members)
        engine, same = await asyncio.gather(city.keeper.wanted("small"), city.keeper.wanted("small"))
        assert engine is same and not engine.state and city.loaded == ["small"]
        await city.right(engine, city.request("one"))

    acted(tmp_path, scenario, on_demand=True)


def test_without_on_demand_requests_load_nothing(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        assert city.keeper.loadable == []
        with pytest.raises(UnknownModel):
            await city.keeper.wanted("small")
        assert city.keeper.begin("small") == "small"  # an operator does
        await city.until(lambda: city.loaded == ["small"] and not city.head.engines["small"].state)
        with pytest.raises(ConfigError, match="served already"):
            city.keeper.begin("small")

    acted(tmp_path, scenario)


def test_what_nobody_asks_for_goes_and_what_runs_stays(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        small, other = await city.keeper.wanted("small"), await city.keeper.wanted("other")
        running = await city.under_way(other, city.request("long", 100))
        small.touch()
        await asyncio.sleep(20)
        assert city.loaded == ["small", "other"]
        await city.until(lambda: city.loaded != ["small", "other"])
        assert "small" not in city.loaded
        await running
        await city.until(lambda: not city.loaded)
        await city.right(await city.keeper.wanted("small"), city.request("again"))

    acted(tmp_path, scenario, on_demand=True, idle=30.0)


def test_the_model_that_was_used_least_makes_room(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        await city.keeper.wanted("small")
        other = await city.keeper.wanted("other")
        await asyncio.sleep(5)
        await city.right(other, city.request("one"))
        large = await city.keeper.wanted("large")
        await city.right(large, city.request("two"))
        assert "small" not in city.loaded, "it was asked for before the others"

    acted(tmp_path, scenario, on_demand=True)


def test_a_model_of_a_lower_priority_goes_before_one_that_was_used_less(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        await city.keeper.wanted("small")
        await asyncio.sleep(5)
        other = await city.keeper.wanted("other")
        await city.right(other, city.request("one"))
        await city.right(await city.keeper.wanted("large"), city.request("two"))
        assert city.loaded == ["small", "large"]

    acted(tmp_path, scenario, on_demand=True, sections=(section("other", priority=-1),))


def test_a_model_of_a_higher_priority_stays_and_takes_the_room_of_a_lower_one_that_was_used_later(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        wide = await city.keeper.wanted("wide")
        with pytest.raises(NotReady, match=r"not served after 60 s: .*others have"):
            await city.keeper.wanted("other")
        assert "wide" in city.loaded, "nobody uses it, and yet it does not go for a lower one"
        await city.right(wide, city.request("one"))
        await city.keeper.unload("wide", "by hand")
        await city.until(lambda: not city.head.engines["other"].state)
        asked = asyncio.ensure_future(city.keeper.wanted("wide"))
        await asyncio.sleep(2)
        city.head.engines["other"].touch()  # later than the other was asked for
        await city.right(await asked, city.request("two"))
        assert city.loaded == ["wide"]

    acted(tmp_path, scenario, on_demand=True, load_wait=60.0, sections=(section("wide", priority=10),))


def test_a_model_that_waits_for_its_node_says_so_and_takes_nobodys_room(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        small = await city.keeper.wanted("small")
        with pytest.raises(NotReady, match="large is not served after 60 s: it waits for node attic; ask again later"):
            await city.keeper.wanted("large")
        assert city.loaded == ["small", "large"] and not small.state
        large = city.head.engines["large"]
        assert (large.pinned, large.awaited, large.state) == ({"attic"}, ["attic"], "it waits for node attic")
        city.start("attic")
        await city.right(await city.keeper.wanted("large"), city.request("one"))
        assert [city.nodes_of(runner) for runner in large.copies] == [{"attic"}] and large.awaited == []

    acted(tmp_path, scenario, on_demand=True, load_wait=60.0, sections=(section("large", nodes="attic", priority=9),))


def test_copies_are_as_many_as_the_file_says_of_the_model_whatever_was_asked_for_last(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        for name in "abc":
            city.start(name)
        counts = dict[str, list[int]]()
        for _ in range(2):
            for name in ("small", "other"):
                engine = await city.keeper.wanted(name)
                counts.setdefault(name, []).append(len(engine.copies.runners))
                engine.scale(3)
                known = RegisteredModel(name, name, "toy", "", 160, 1, 1, replicas=len(engine.copies.runners))
                city.keeper._known = {**city.keeper._known, name: known}
                await city.keeper.unload(name, "by hand")
        assert counts == {"small": [2, 2], "other": [1, 3]}

    acted(tmp_path, scenario, on_demand=True, sections=(section("small", replicas=2),))


def test_a_model_that_fits_nowhere_says_so_and_nobody_goes_for_it(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        small = await city.keeper.wanted("small")
        with pytest.raises(NotReady, match="not enough memory"):
            await city.keeper.wanted("huge")
        assert city.loaded == ["small"] and "not enough memory" in city.keeper.state("huge")
        await city.right(small, city.request("one"))

    acted(tmp_path, scenario, on_demand=True)


def test_the_wait_for_a_model_is_bounded(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(NotReady, match="not served after 20 s"):
            await city.keeper.wanted("small")  # there is no node
        assert asyncio.get_running_loop().time() - began == pytest.approx(20, abs=0.1)

    acted(tmp_path, scenario, on_demand=True, load_wait=20.0)


def test_what_cannot_be_read_is_told_to_those_who_wait_and_to_operators(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        city.start("a")
        city.keeper._references["odd"] = "odd"
        with pytest.raises(NotReady, match="odd: no such file"):
            await city.keeper.wanted("odd")
        assert "no such file" in city.keeper.failed["odd"] and not city.keeper.loading
        assert any("odd could not be loaded" in event.message for event in city.head.coordinator.recorder.events)

    acted(tmp_path, scenario, on_demand=True)


def test_who_waits_for_a_model_that_is_unloaded_meanwhile_is_told(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        waiting = [asyncio.ensure_future(city.keeper.wanted("small")) for _ in range(2)]
        await asyncio.sleep(0.5)
        assert city.keeper.loading == ["small"]
        await city.keeper.unload("small", "by hand")
        waiting.append(asyncio.ensure_future(city.keeper.wanted("other")))
        await city.until(lambda: "other" in city.loaded)
        await city.keeper.unload("other", "by hand")
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, NotReady) and "unloaded" in str(outcome), outcome
        with pytest.raises(UnknownModel):
            await city.keeper.unload("other", "by hand")

    acted(tmp_path, scenario, on_demand=True)


def test_the_number_of_copies_follows_what_an_operator_asks_for(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        for name in "abc":
            city.start(name)
        engine = await city.keeper.wanted("small")
        running = await city.under_way(engine, city.request("long", 120))
        for count in (3, 1, 2):
            city.keeper.begin("small", count)
            await city.until(lambda count=count: len(engine.copies.runners) == count and all(r.serving for r in engine.copies))
            places = [city.nodes_of(runner) for runner in engine.copies]
            assert len(set().union(*places)) == sum(map(len, places)), "they share no node"
        await running
        await city.right(engine, city.request("after"))

    acted(tmp_path, scenario, on_demand=True)


def test_aliases_are_kept_and_told(tmp_path: Path) -> None:
    async def scenario(city: Kept) -> None:
        told: list[dict[str, str]] = []
        city.keeper.watch(lambda: told.append(dict(city.keeper.aliases)))
        city.keeper.alias("gpt-4o", "small")
        city.keeper.alias("best", "gpt-4o")
        with pytest.raises(ConfigError, match="circle"):
            city.keeper.alias("gpt-4o", "best")
        with pytest.raises(ConfigError, match="no model here"):
            city.keeper.alias("x", "nothing")
        city.keeper.alias("best", "")
        city.keeper._references["gpt-4o"] = "gpt-4o"  # a model of that name is fetched later
        with pytest.raises(ConfigError, match="stands for 'small'"):
            city.keeper.begin("gpt-4o")
        assert told == [{"gpt-4o": "small"}, {"gpt-4o": "small", "best": "gpt-4o"}, {"gpt-4o": "small"}]
        assert ToyKeeper(city.head, city.settings, city.store, read).aliases == {"gpt-4o": "small"}

    acted(tmp_path, scenario, on_demand=True)
