"""Other names for models: any sequence of changes leaves aliases that end at a model, and what cannot be is refused with its reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.serving.aliases import LONGEST, added, check, removed, resolved, standing

MODELS = ["m1", "m2"]
ALIASES = ["a", "b", "c", "d"]
CHANGES = st.lists(st.tuples(st.sampled_from(ALIASES), st.sampled_from([*ALIASES, *MODELS, "nothing", ""])), max_size=20)
"""Each an alias, and what it is to stand for; '': it is removed."""
ANY = st.dictionaries(st.sampled_from([*ALIASES, "m1"]), st.sampled_from([*ALIASES, *MODELS, "nothing"]))


def followed(aliases: dict[str, str], name: str) -> str | None:
    """Where a name leads, step by step; None: nowhere."""
    for _ in range(len(aliases) + 1):
        if name in MODELS:
            return name
        if name not in aliases:
            return None
        name = aliases[name]
    return None


@given(CHANGES)
def test_every_alias_ends_at_a_model_whatever_was_changed(changes: list[tuple[str, str]]) -> None:
    aliases: dict[str, str] = {}
    for alias, target in changes:
        before = dict(aliases)
        try:
            aliases = added(aliases, alias, target, MODELS) if target else removed(aliases, alias)
        except ConfigError:
            assert aliases == before
        else:
            assert aliases == {**{a: t for a, t in before.items() if a != alias}, **({alias: target} if target else {})}
        check(aliases, MODELS)
        assert [resolved(aliases, alias) for alias in aliases] == [followed(aliases, alias) for alias in aliases]
        assert standing(aliases, MODELS) == [*aliases]


@given(ANY)
def test_refused_is_exactly_what_leads_to_no_model(aliases: dict[str, str]) -> None:
    good = not set(aliases) & set(MODELS) and all(followed(aliases, alias) is not None for alias in aliases)
    try:
        check(aliases, MODELS)
    except ConfigError:
        assert not good
    else:
        assert good


@given(ANY, st.sampled_from([*ALIASES, *MODELS, "other"]))
def test_what_is_no_alias_stands_for_itself(aliases: dict[str, str], name: str) -> None:
    if name not in aliases:
        assert resolved(aliases, name) == name


@given(CHANGES)
def test_an_alias_of_a_model_that_has_gone_stands_for_nothing(changes: list[tuple[str, str]]) -> None:
    aliases: dict[str, str] = {}
    for alias, target in changes:
        try:
            aliases = added(aliases, alias, target, MODELS)
        except ConfigError:
            continue
    assert standing(aliases, ["m2"]) == [alias for alias in aliases if followed(aliases, alias) == "m2"]


@pytest.mark.parametrize(
    ("aliases", "circle"),
    [({"a": "a"}, "a → a"), ({"a": "b", "b": "a"}, "a → b → a"), ({"x": "a", "a": "b", "b": "c", "c": "a"}, "a → b → c → a")],
)
def test_a_circle_is_named(aliases: dict[str, str], circle: str) -> None:
    with pytest.raises(ConfigError, match=f"in a circle: {circle};"):
        check(aliases, MODELS)


def test_the_alias_that_leads_nowhere_is_named_and_what_it_may_have_meant() -> None:
    with pytest.raises(ConfigError, match=r"'b' stands for 'm11', which is no model here \(did you mean 'm1'\?\): there are m1, m2"):
        check({"a": "b", "b": "m11"}, MODELS)


def test_a_model_is_no_alias() -> None:
    with pytest.raises(ConfigError, match="'m1' is the name of a model"):
        added({}, "m1", "m2", MODELS)


@pytest.mark.parametrize("alias", ["", " a", "a\n", "a\x00b", "a" * (LONGEST + 1)])
def test_an_alias_is_a_name(alias: str) -> None:
    with pytest.raises(ConfigError, match="an alias is"):
        added({}, alias, "m1", MODELS)


def test_what_others_stand_for_stays() -> None:
    aliases = {"a": "b", "c": "b", "b": "m1"}
    with pytest.raises(ConfigError, match="a and c stand for 'b'"):
        removed(aliases, "b")
    assert removed(removed(removed(aliases, "a"), "c"), "b") == {}


def test_only_an_alias_is_removed() -> None:
    with pytest.raises(ConfigError, match=r"no alias 'gpt' \(did you mean 'gpt4'\?\)"):
        removed({"gpt4": "m1"}, "gpt")
