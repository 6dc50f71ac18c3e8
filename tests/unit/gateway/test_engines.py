"""The engines of a server by the names that requests use."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError, NotReady, ShoalError, UnknownModel
from shoal.gateway.engines import ServedEngines
from tests.support.engine import FakeEngine
from tests.support.several import ALIASES, Called, OnDemand, served

NAMES = ["alpha", "beta", "gamma"]


def found(engines: ServedEngines, model: str | None) -> str:
    """The name of the model that answers, or of the refusal."""
    try:
        return asyncio.run(engines.find(model)).name
    except ShoalError as error:
        return type(error).__name__


def three() -> ServedEngines:
    return served(*map(Called, NAMES))


@pytest.mark.parametrize(
    ("asked", "answers"),
    [
        (None, "alpha"),
        ("alpha", "alpha"),
        ("beta", "beta"),
        ("gpt-4o", "beta"),
        ("best", "beta"),
        ("delta", "UnknownModel"),
        ("", "UnknownModel"),
    ],
)
def test_a_model_is_found_by_its_name_or_an_alias(asked: str | None, answers: str) -> None:
    assert found(three(), asked) == answers


def test_an_unknown_model_is_told_which_there_are() -> None:
    with pytest.raises(UnknownModel, match=r"'gama' \(did you mean 'gamma'\?\): known here are alpha, beta, gamma, gpt-4o, best"):
        three().resolve("gama")


@pytest.mark.parametrize(
    ("aliases", "said"), [({"a": "b", "b": "a"}, "circle"), ({"a": "delta"}, "no model"), ({"beta": "alpha"}, "name of a model")]
)
def test_aliases_that_cannot_be_are_refused_and_change_nothing(aliases: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        served(*map(Called, NAMES), aliases=aliases)
    engines = three()
    with pytest.raises(ConfigError, match=said):
        engines.rename(aliases)
    assert (engines.aliases, found(engines, "best")) == (ALIASES, "beta")


def test_who_watches_is_told_of_every_change() -> None:
    engines = three()
    seen: list[tuple[Any, ...]] = []
    engines.watch(lambda: seen.append((found(engines, "beta"), found(engines, "best"), found(engines, None))))
    engines.remove("beta")
    engines.remove("beta")
    engines.rename({})
    engines.add(Called("beta"))
    engines.rename({"best": "gamma"})
    engines.remove("alpha")
    assert seen == [
        ("UnknownModel", "UnknownModel", "alpha"),
        ("UnknownModel", "UnknownModel", "alpha"),
        ("beta", "UnknownModel", "alpha"),
        ("beta", "gamma", "alpha"),
        ("beta", "gamma", "gamma"),
    ]


def test_an_alias_of_an_unloaded_model_is_back_with_it() -> None:
    engines = three()
    engines.remove("beta")
    with pytest.raises(UnknownModel, match=r"unknown model 'beta'.*: known here are alpha, gamma$"):
        engines.resolve("best")
    engines.add(Called("beta"))
    assert engines.resolve("best") == "beta"


def test_an_engine_in_the_place_of_another_is_the_one_that_is_found() -> None:
    engines, new = three(), Called("beta")
    engines.add(new)
    assert asyncio.run(engines.find("best")) is new
    assert [*engines.names] == NAMES


def test_a_model_cannot_come_under_the_name_of_an_alias() -> None:
    engines = three()
    with pytest.raises(ConfigError, match="'best' is an alias, which stands for 'gpt-4o'; remove it first"):
        engines.add(Called("best"))
    assert ([*engines.names], found(engines, "best")) == (NAMES, "beta")


def test_the_server_is_ready_once_all_that_it_was_started_with_is() -> None:
    alpha, beta = Called("alpha"), Called("beta")
    engines = served(alpha, beta)
    assert (engines.state, engines.states) == ("", {"alpha": "", "beta": ""})
    beta.state = "1 of 2 nodes have joined"
    assert engines.state == "beta: 1 of 2 nodes have joined"
    alpha.state = "it is loading"
    assert engines.state == "alpha: it is loading; beta: 1 of 2 nodes have joined"
    alpha.state = ""
    beta.state = ""
    gamma = Called("gamma")
    gamma.state = "it is loading"
    engines.add(gamma)
    assert (engines.state, engines.states["gamma"]) == ("", "it is loading")
    engines.remove("beta")
    assert engines.state == "beta: it was unloaded"


def test_the_state_of_one_model_is_the_server_s() -> None:
    engine = Called("alpha")
    engine.state = "it is loading"
    assert served(engine, aliases={}).state == "it is loading"


def test_a_server_without_models_is_not_ready_for_any() -> None:
    engines = ServedEngines([], FakeEngine())
    with pytest.raises(NotReady, match="no model is loaded"):
        engines.resolve(None)
    assert (found(engines, None), found(engines, "alpha")) == ("NotReady", "UnknownModel")


def test_a_model_that_is_there_is_found_without_being_looked_for() -> None:
    engines = three()
    engines.resolve = None  # pyright: ignore[reportAttributeAccessIssue] - it fails where it is called
    for name in (None, *NAMES, *ALIASES):
        assert found(engines, name) in NAMES


def test_a_model_that_is_known_is_loaded_when_it_is_asked_for() -> None:
    async def go() -> None:
        engines = OnDemand([Called("alpha")], [Called("beta")])
        assert [*engines.names] == ["alpha", "beta"]
        engines.rename({"best": "beta"})
        finding = asyncio.ensure_future(engines.find("best"))
        await asyncio.sleep(0)
        assert engines.asked == ["beta"] and not finding.done()
        engines.loaded.set()
        assert (await finding).name == "beta"
        assert await engines.find("beta") is await finding
        assert engines.asked == ["beta"]

    asyncio.run(go())


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(NAMES)), max_size=20))
def test_whatever_comes_and_goes_each_name_finds_its_own_engine(changes: list[tuple[bool, str]]) -> None:
    engines, there = ServedEngines([], FakeEngine()), dict[str, Called]()
    for comes, name in changes:
        if comes:
            there[name] = Called(name)
            engines.add(there[name])
        else:
            there.pop(name, None)
            engines.remove(name)
        assert [*engines.all] == [*there.values()]
        assert [found(engines, name) for name in NAMES] == [name if name in there else "UnknownModel" for name in NAMES]
        assert found(engines, None) == next(iter(there), "NotReady")
