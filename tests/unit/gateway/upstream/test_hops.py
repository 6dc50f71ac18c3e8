"""Servers that a request passed through, and lists of models that others send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import Looped
from shoal.gateway.upstream.hops import MOST, extended, passed, server_id
from shoal.gateway.upstream.listing import read_models

IDS = st.integers(0, 2**48 - 1).map(lambda number: f"shoal-{number:012x}")
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["id", "via", "max_model_len", "data"]), inner),
)


@given(st.lists(IDS, unique=True, max_size=MOST - 1), IDS)
def test_each_server_adds_itself_and_is_found_again(before: list[str], own: str) -> None:
    via = [f"1.1 {id}" for id in before]
    if own in before:
        with pytest.raises(Looped):
            extended(via, own)
    else:
        gone_on = extended(via, own)
        assert passed([gone_on]) == [*before, own]
        with pytest.raises(Looped):
            extended([gone_on], own)


@given(st.lists(st.text(st.characters(max_codepoint=127, exclude_categories=["Cc"]), max_size=30), max_size=5))
def test_other_proxies_pass_untouched(via: list[str]) -> None:
    own = server_id()
    assert extended(via, own) == ", ".join([*via, f"1.1 {own}"])


def test_a_chain_of_servers_has_an_end() -> None:
    via: list[str] = []
    for _ in range(MOST):
        via = [extended(via, server_id())]
    with pytest.raises(Looped, match="16 servers"):
        extended(via, server_id())


def test_ids_differ() -> None:
    assert len({server_id() for _ in range(100)}) == 100


@given(JSON)
def test_whatever_is_sent_as_a_list_of_models_is_read_or_refused(sent: Any) -> None:
    for body in (sent, {"data": sent}, {"data": [sent]}, {"data": [{"id": "m", "via": sent, "max_model_len": sent}]}):
        for model in read_models(json.dumps(body).encode()) or []:
            assert 0 < len(model.name) <= 512 and model.context >= 0 and all(len(id) <= 64 for id in model.via)


@given(st.binary(max_size=100))
def test_bytes_are_no_list_of_models(raw: bytes) -> None:
    assert read_models(raw) is None or raw.strip().startswith(b"{")


def test_cards_are_read() -> None:
    cards = [{"id": "a", "max_model_len": 7, "via": ["x", "y"]}, {"id": "b", "max_model_len": None}, {"id": ""}, {"name": "c"}, 5]
    models = read_models(json.dumps({"data": cards}).encode())
    assert models is not None and [(each.name, each.context, each.via) for each in models] == [("a", 7, ["x", "y"]), ("b", 0, [])]
