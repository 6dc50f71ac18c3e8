"""Which addresses are told, and which of them a node takes."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest

from shoal.discovery import addresses
from shoal.discovery.addresses import Address, Interface, facing, nearest, reachable, resolved
from shoal.errors import ConfigError


def told(*texts: str) -> list[Address]:
    return [ipaddress.ip_address(text) for text in texts]


def machine(*texts: str) -> list[Interface]:
    return [ipaddress.ip_interface(text) for text in texts]


def test_loopback_and_link_local_are_told_only_where_there_is_nothing_else():
    assert reachable(told("127.0.0.1", "fe80::1", "fd00::2", "192.168.1.5")) == told("192.168.1.5", "fd00::2")
    assert reachable(told("127.0.0.1", "fe80::1")) == told("fe80::1")
    assert reachable(told("::1", "127.0.0.1")) == told("127.0.0.1", "::1")
    assert reachable([]) == []


@pytest.mark.parametrize(
    ("candidates", "ours", "expected"),
    [
        (["10.1.0.5", "192.168.1.5"], ["192.168.1.9/24", "127.0.0.1/8"], "192.168.1.5"),  # the network that both are on
        (["192.168.1.5", "172.17.0.1"], ["172.17.0.1/16", "10.9.0.9/24"], "192.168.1.5"),  # docker0 leads back here
        (["fe80::1%3", "fd00::5"], ["fd00::9/64", "fe80::9/64"], "fd00::5"),
        (["fd00::5", "10.1.0.5"], ["192.168.1.9/24"], "10.1.0.5"),  # routed: IPv4 first
        (["192.168.1.9", "172.17.0.1"], ["192.168.1.9/24", "172.17.0.1/16"], "172.17.0.1"),  # this machine: any will do
        (["127.0.0.1"], ["127.0.0.1/8", "192.168.1.9/24"], "127.0.0.1"),
        (["127.0.0.1", "192.168.1.5"], ["127.0.0.1/8", "192.168.1.9/24"], "192.168.1.5"),
        ([], ["192.168.1.9/24"], None),
    ],
)
def test_the_nearest_address_is_taken(candidates: list[str], ours: list[str], expected: str | None):
    assert str(nearest(told(*candidates), machine(*ours))) == str(expected)


def test_a_wildcard_is_every_address_that_others_reach(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(addresses, "of_this_machine", lambda: machine("192.168.1.9/24", "fd00::9/64", "127.0.0.1/8", "::1/128"))
    assert asyncio.run(resolved("0.0.0.0")) == told("192.168.1.9")
    assert asyncio.run(resolved("::")) == told("192.168.1.9", "fd00::9")
    assert asyncio.run(resolved("10.0.0.1")) == told("10.0.0.1")
    assert asyncio.run(facing("127.0.0.1", 6379, "0.0.0.0")) == "192.168.1.9"  # and not loopback


def test_a_machine_has_its_own_addresses():
    assert ipaddress.ip_address("127.0.0.1") in [i.ip for i in addresses.of_this_machine()]


def test_a_name_that_means_nothing_is_a_setting_at_fault():
    with pytest.raises(ConfigError, match="does not resolve"):
        asyncio.run(resolved("no-such-host.invalid"))
