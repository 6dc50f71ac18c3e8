"""What a cluster says of itself: every advert survives both encodings, garbage survives neither."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.discovery.advert import MAX_ENTRY, MAX_JSON, MAX_NODES, MAX_VERSION, MAX_WORDS, Advert, check_name, words
from shoal.errors import ConfigError, LocalProtocolError, RemoteProtocolError

NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,46}[A-Za-z0-9])?", fullmatch=True)
PORTS = st.integers(1, 65535)
HOSTS = st.sampled_from(["192.168.1.5", "127.0.0.1", "fd00::5", "fe80::1%eth0", "box.lan", "box", "a_b.example.org."])
LINES = st.one_of(st.text(max_size=20), st.text(max_size=9).map(lambda text: text * 40)).map(words)

ADVERTS = st.builds(
    Advert,
    cluster=NAMES,
    host=HOSTS,
    control_port=PORTS,
    pairing_port=st.integers(0, 65535),
    model=LINES,
    state=LINES,
    nodes=st.integers(0, MAX_NODES),
    version=st.text(max_size=20).map(lambda text: words(text, MAX_VERSION)),
    secure=st.booleans(),
)
GOOD = Advert(cluster="reef", host="192.168.1.5", control_port=7420)


def as_bytes(records: dict[str, str]) -> dict[bytes, bytes | None]:
    return {key.encode(): value.encode() for key, value in records.items()}


@given(ADVERTS)
@settings(max_examples=40)
def test_txt_records_say_it_all_in_bounds(advert: Advert):
    records = advert.to_txt()
    assert all(len(f"{key}={value}".encode()) <= MAX_ENTRY for key, value in records.items())
    assert Advert.from_txt(as_bytes(records), advert.host, advert.control_port) == advert


@given(ADVERTS)
@settings(max_examples=40)
def test_json_says_it_all_in_bounds(advert: Advert):
    assert len(advert.to_json()) <= MAX_JSON
    assert Advert.from_json(advert.to_json()) == advert


@given(st.binary(max_size=99))
def test_any_bytes_are_an_advert_or_refused(data: bytes):
    with contextlib.suppress(RemoteProtocolError):
        Advert.from_json(data)


KEYS = st.one_of(st.sampled_from([key.encode() for key in GOOD.to_txt()]), st.binary(max_size=9))
VALUES = st.one_of(st.none(), st.binary(max_size=20), st.sampled_from([b"reef", b"1", b"0", b"65536", "٣".encode()]))


@given(st.dictionaries(KEYS, VALUES), st.one_of(HOSTS, st.text(max_size=20)), st.integers(-1, 70000))
def test_any_records_are_an_advert_or_refused(records: dict[bytes, bytes | None], host: str, port: int):
    try:
        advert = Advert.from_txt(records, host, port)
    except RemoteProtocolError:
        return
    assert Advert.from_json(advert.to_json()) == advert


@given(st.text(), st.integers(3, 200))
def test_words_are_one_printable_line_in_bounds(text: str, most: int):
    line = words(text, most)
    assert line.isprintable() and len(line.encode()) <= most


def test_words_keep_what_fits_and_mark_what_was_cut():
    assert words("loading\n layers") == "loading layers"
    assert words("x" * 500) == "x" * (MAX_WORDS - 3) + "…"


def test_unknown_keys_and_missing_ones_are_no_matter():
    assert Advert.from_txt({b"Cluster": b"reef", b"colour": b"\xff", b"flag": None}, "192.168.1.5", 7420) == GOOD
    assert Advert.from_json(b'{"cluster": "reef", "host": "192.168.1.5", "control_port": 7420, "colour": [1]}') == GOOD


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cluster": ""}, "cluster"),
        ({"cluster": "a:b"}, "cluster"),
        ({"cluster": "a" * 49}, "cluster"),
        ({"host": "not a host"}, "host"),
        ({"host": "10.0.0.256"}, "host"),
        ({"host": "224.0.0.251"}, "host"),
        ({"host": "10.0.0.1%eth0"}, "host"),
        ({"host": "box\n"}, "host"),
        ({"control_port": 0}, "control port 0"),
        ({"control_port": 65536}, "control port 65536"),
        ({"pairing_port": -1}, "pairing port"),
        ({"nodes": MAX_NODES + 1}, "nodes"),
        ({"model": "\x1b[2J"}, "not printable"),
        ({"state": "a\nb"}, "not printable"),
        ({"state": "é" * MAX_WORDS}, "state of more than"),
        ({"version": "1" * 65}, "version of more than"),
    ],
)
def test_values_out_of_bounds_are_refused(change: dict[str, object], reason: str):
    values = {"cluster": "reef", "host": "192.168.1.5", "control_port": 7420} | change
    with pytest.raises(LocalProtocolError, match=reason):
        Advert(**values)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RemoteProtocolError, match=reason):
        Advert.from_json(json.dumps(values).encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"cluster": 1}', b"\xff", b"[" * 4000, b" " * (MAX_JSON + 1)])
def test_what_is_no_advert_is_refused(data: bytes):
    with pytest.raises(RemoteProtocolError, match="advert"):
        Advert.from_json(data)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_everywhere_is_an_address_for_the_announcer_alone(host: str):
    advert = Advert(cluster="reef", host=host, control_port=7420)
    assert advert.anywhere and not advert.at("10.0.0.1").anywhere
    with pytest.raises(RemoteProtocolError, match="nothing can be reached at"):
        Advert.from_json(advert.to_json())


def test_an_ipv6_address_stands_in_brackets():
    assert GOOD.address == "192.168.1.5:7420"
    assert GOOD.at("fd00::5").address == "[fd00::5]:7420"


def test_names():
    assert check_name("Reef_2-b") == "Reef_2-b"
    for name in ("", "-a", "a-", "a b", "a.b", "ä", "a\n", "*"):
        with pytest.raises(ConfigError, match="cannot be a cluster's name"):
            check_name(name)
