"""Addresses as people write them, as libraries want them, and as they are printed."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from shoal import address
from shoal.address import Address, grpc_target, http_url, in_zone, is_loopback, listening_socket, parse_address, parse_host
from shoal.config import ApiSettings, HeadSettings, NodeSettings
from shoal.discovery.addresses import of_this_machine, reached_at
from shoal.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port", "printed", "target"),
    [
        ("192.168.1.20:7420", "192.168.1.20", 7420, "192.168.1.20:7420", "192.168.1.20:7420"),
        ("[::1]:39115", "::1", 39115, "[::1]:39115", "ipv6:[::1]:39115"),
        ("[FD00:0:0:0:0:0:0:5]:1", "fd00::5", 1, "[fd00::5]:1", "ipv6:[fd00::5]:1"),
        ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535, "[fe80::1%eth0]:65535", "ipv6:[fe80::1%25eth0]:65535"),
        ("[fe80::1%25eth0]:7420", "fe80::1%eth0", 7420, "[fe80::1%eth0]:7420", "ipv6:[fe80::1%25eth0]:7420"),
        ("[fe80::1%2]:7420", "fe80::1%2", 7420, "[fe80::1%2]:7420", "ipv6:[fe80::1%252]:7420"),
        ("[::ffff:10.0.0.7]:7420", "10.0.0.7", 7420, "10.0.0.7:7420", "10.0.0.7:7420"),
        ("box.local:7420", "box.local", 7420, "box.local:7420", "box.local:7420"),
        (" localhost:07420 ", "localhost", 7420, "localhost:7420", "localhost:7420"),
    ],
)
def test_an_address_is_read_and_written(text: str, host: str, port: int, printed: str, target: str) -> None:
    assert parse_address(text) == Address(host, port)
    assert str(parse_address(text)) == printed
    assert parse_address(printed) == (host, port)
    assert grpc_target(text) == target


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("::1:39115", "write [::1]:39115"),
        ("::1:7420", "write [::1]:7420"),
        ("fe80::1%eth0:7420", "write [fe80::1%eth0]:7420"),
        ("::1", "write [::1]:PORT"),
        ("fd00::5", "write [fd00::5]:PORT"),
        ("0.0.0.0:58987", "every address of the listening machine"),
        ("[::]:58987", "every address of the listening machine"),
        *((text, "write HOST:PORT") for text in ("", "host", ":7420", "host:", "host:0", "host:65536", "host:٣", "host:-1", "host:7420x")),
        *((text, "write HOST:PORT") for text in ("[::1]", "[]:7420", "[host]:7420", "[::1:7420", "http://host:7420", "a:b:7420")),
        ("10.0.0.256:7420", "write HOST:PORT"),
        ("ho st:7420", "write HOST:PORT"),
        ("224.0.0.1:7420", "write HOST:PORT"),
        ("[fe80::1%]:7420", "write HOST:PORT"),
        ("10.0.0.1%eth0:7420", "write HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused_with_what_to_write(text: str, advice: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_address(text)
    assert advice in str(refused.value)


@pytest.mark.parametrize("text", ["[::1]", "::1", "0:0:0:0:0:0:0:1", " ::1"])
def test_a_host_has_one_form(text: str) -> None:
    assert parse_host(text) == HeadSettings(host=text).host == ApiSettings(api_host=text).api_host == NodeSettings(bind=text).bind == "::1"


@pytest.mark.parametrize("text", ["192.168.1.20:7420", "[::1]:7420"])
def test_a_host_with_a_port_is_told_to_leave_it(text: str) -> None:
    for settings, flag in ((HeadSettings, "host"), (ApiSettings, "api_host"), (NodeSettings, "bind")):
        given: dict[str, Any] = {flag: text}
        with pytest.raises(ConfigError, match=rf"--{flag.replace('_', '-')}: .*without its port"):
            settings(**given)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost", "LOCALHOST.", "::ffff:127.0.0.1"])
def test_loopback_in_every_form_needs_no_protection(host: str) -> None:
    assert is_loopback(host)
    settings = HeadSettings(host=host, api=ApiSettings(api_host=host))
    assert not settings.protected and not settings.api.exposed


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.20", "fd00::5", "fe80::1%eth0", "box", "localhost.example"])
def test_everything_else_is_protected(host: str) -> None:
    settings = HeadSettings(host=host, api=ApiSettings(api_host=host))
    assert settings.protected and settings.api.exposed


def test_a_url_has_its_zone_encoded() -> None:
    assert http_url("fe80::1%eth0", 8000) == "http://[fe80::1%25eth0]:8000"
    assert http_url("::1", 8000) == "http://[::1]:8000"
    assert http_url("box", 8000) == "http://box:8000"


def test_a_link_local_address_gets_the_zone_of_whoever_uses_it() -> None:
    assert in_zone("fe80::1%en0", "eth0") == in_zone("fe80::1", "eth0") == "fe80::1%eth0"
    assert in_zone("fd00::1", "eth0") == "fd00::1"
    assert in_zone("10.0.0.1", "eth0") == "10.0.0.1"
    assert in_zone("fe80::1%en0", "") == "fe80::1%en0"


# Sockets


def answers(listener: socket.socket, host: str) -> bool:
    listener.listen()
    try:
        with socket.create_connection((host, listener.getsockname()[1]), timeout=10):
            return True
    except ConnectionRefusedError:
        return False


needs_ipv6 = pytest.mark.skipif(not any(str(i.ip) == "::1" for i in of_this_machine()), reason="this machine has no IPv6")


@needs_ipv6
def test_every_address_of_ipv6_takes_ipv4_too() -> None:
    with listening_socket("::", 0) as both, listening_socket("::1", 0) as six, listening_socket("0.0.0.0", 0) as four:
        assert answers(both, "127.0.0.1") and answers(both, "::1")
        assert answers(six, "::1") and not answers(six, "127.0.0.1")
        assert answers(four, "127.0.0.1") and not answers(four, "::1")


def test_a_name_is_listened_on_at_its_ipv4_address() -> None:
    with listening_socket("localhost", 0) as listener:
        assert address.of_socket(listener.getsockname()) == "127.0.0.1"


def test_an_address_that_cannot_be_listened_on_says_why() -> None:
    with listening_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            listening_socket("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"203\.0\.113\.9 is not an address of this machine"):
        listening_socket("203.0.113.9", 0)
    with pytest.raises(ConfigError, match=r"cannot listen on nobody\.invalid: "):
        listening_socket("nobody.invalid", 0)


# What others are told


def test_an_address_is_told_as_it_is() -> None:
    assert [reached_at(host) for host in ("127.0.0.1", "::1", "box", "fd00::5")] == ["127.0.0.1", "::1", "box", "fd00::5"]


def test_a_wildcard_is_told_as_an_address_of_this_machine_that_others_reach() -> None:
    own = {str(i.ip): i.ip for i in of_this_machine()}
    away = [ip for ip in own.values() if not ip.is_loopback and not ip.is_link_local]
    four, any_of_both = reached_at("0.0.0.0"), reached_at("::")
    assert own[four].version == 4
    assert own[four].is_loopback == (not [ip for ip in away if ip.version == 4])
    assert own[any_of_both].is_loopback == (not away)
