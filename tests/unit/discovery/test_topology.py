"""What is published of a cluster: compact, bounded, and refused as a whole where no head can have written it."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.discovery.changes import Change
from shoal.discovery.topology import (
    MAX_NAME,
    MAX_RECORD,
    MAX_TABLE,
    MOST_NODES,
    NodeState,
    RouteRecord,
    RouteState,
    StageSpan,
    as_ranges,
    decoded,
    published_name,
    table_of,
)
from shoal.errors import RemoteProtocolError
from tests.support.topologies import HEAD, node, numbers, tables, topologies, topology

KINDS: tuple[type[Any], ...] = (NodeState, RouteRecord, Change)


@given(st.sets(st.integers(0, 300)))
def test_ranges_say_each_number_once_and_no_two_of_them_touch(some: set[int]):
    text = as_ranges(some)
    assert numbers(text) == some
    bounds = [part.split("-") for part in text.split(",")] if text else []
    assert all(int(left[-1]) + 1 < int(right[0]) for left, right in itertools.pairwise(bounds))
    assert all(len(bound) == 1 or int(bound[0]) < int(bound[1]) for bound in bounds)


@given(tables)
def test_a_table_by_ranges_is_the_table(table: list[frozenset[int]]):
    found: dict[int, set[int]] = {}
    for layers, experts in table_of(table).items():
        for layer in numbers(layers):
            assert layer not in found
            found[layer] = numbers(experts)
    assert found == {layer: set(experts) for layer, experts in enumerate(table) if experts}


def test_layers_with_the_same_experts_are_said_once():
    half = frozenset(range(64, 128))
    assert table_of([half] * 27 + [frozenset()] + [half] * 2 + [frozenset({0, 2})]) == {"0-26": "64-127", "28-29": "64-127", "30": "0,2"}


def test_of_a_table_that_is_too_large_only_the_number_is_published():
    scattered = [frozenset(range(layer % 2, 1024, 2)) for layer in range(100)]
    assert sum(len(as_ranges(experts)) for experts in scattered) > MAX_TABLE
    assert table_of(scattered) == {}
    assert table_of(scattered[:40])


@given(st.text(max_size=200), st.integers(1, 1 << 60))
def test_any_name_becomes_one_that_can_be_published(name: str, number: int):
    shown = published_name(name, number)
    assert shown and shown.isprintable() and len(shown.encode()) <= MAX_NAME
    assert shown == name or shown.endswith(f"#{number % 10**11}")
    assert published_name(shown, number) == shown


def test_the_largest_cluster_fits_into_a_record():
    names = [("é" * 18 + f"{number:011}")[-MAX_NAME:] for number in range(MOST_NODES)]
    names = [name if len(name.encode()) <= MAX_NAME else name[4:] for name in names]
    spans = [StageSpan(name, "100000-100001") for name in names]
    record = RouteRecord(1 << 62, 15.0, names, RouteState(HEAD, "m" * 120, "serving", 1 << 62, spans, names))
    assert decoded(data := msgspec.json.encode(record), RouteRecord) == record
    assert len(data) <= MAX_RECORD


def test_the_largest_table_fits_into_an_event():
    state = msgspec.structs.replace(node(), experts={"0": "7" * MAX_TABLE})
    assert len(msgspec.json.encode(Change("moved", HEAD, 1, state.name, state=state))) < MAX_RECORD


@given(topologies())
def test_what_a_head_writes_is_read_back(cluster: Any):
    for state in cluster.nodes.values():
        assert decoded(msgspec.json.encode(state), NodeState) == state
    record = RouteRecord(3, 15.0, list(cluster.nodes), cluster.route)
    assert decoded(msgspec.json.encode(record), RouteRecord) == record


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=64) | anything.map(lambda value: json.dumps(value).encode()), st.sampled_from(KINDS))
def test_whatever_is_read_is_right_or_refused(data: bytes, kind: type[Any]):
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(decoded(data, kind), kind)


@given(topologies(), anything, st.data())
def test_a_field_that_was_replaced_is_right_or_refused(cluster: Any, value: Any, data: st.DataObject):
    record = json.loads(msgspec.json.encode(RouteRecord(3, 15.0, list(cluster.nodes), cluster.route)))
    at = data.draw(st.sampled_from([record, record["route"]]))
    at[data.draw(st.sampled_from(sorted(at)))] = value
    with contextlib.suppress(RemoteProtocolError):
        assert decoded(json.dumps(record).encode(), RouteRecord).route.epoch >= 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a\x1b[2J"},
        {"name": ""},
        {"name": "a" * 49},
        {"number": -1},
        {"number": 1 << 63},
        {"number": "1"},
        {"layers": "0-"},
        {"layers": "0-3\n"},
        {"layers": [0, 3]},
        {"experts": {"0": "all"}},
        {"experts": {"\x1b": "0"}},
        {"round_trip": -1},
        {"round_trip": 1e9},
        {"load": {"busy": 1.5}},
        {"load": {"queue": None}},
        {"machine": "x" * 257},
        {"state": "\u202eserving"},
    ],
)
def test_a_node_that_cannot_be_is_refused(wrong: dict[str, Any]):
    good = json.loads(msgspec.json.encode(node()))
    assert decoded(json.dumps({**good, "later": {"versions": "add"}}).encode(), NodeState) == node()
    with pytest.raises(RemoteProtocolError, match="not what a head writes"):
        decoded(json.dumps({**good, **wrong}).encode(), NodeState)


@pytest.mark.parametrize("wrong", [{"ttl": 0}, {"ttl": 1e9}, {"seq": -1}, {"nodes": ["a"] * 1025}, {"nodes": [""]}, {"route": None}])
def test_a_route_that_cannot_be_is_refused(wrong: dict[str, Any]):
    good = json.loads(msgspec.json.encode(RouteRecord(3, 15.0, ["a"], topology().route)))
    with pytest.raises(RemoteProtocolError, match="not what a head writes"):
        decoded(json.dumps({**good, **wrong}).encode(), RouteRecord)


def test_what_is_too_long_is_not_even_parsed():
    with pytest.raises(RemoteProtocolError, match="more than 262144 bytes"):
        decoded(b"[" * (MAX_RECORD + 1), NodeState)
    with pytest.raises(RemoteProtocolError, match="not what a head writes"):
        decoded(b'{"x":' + b"[" * 100_000, NodeState)
