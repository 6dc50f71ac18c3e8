"""Settings and what they open; addresses that are given; URLs, and that no message holds their password."""

from __future__ import annotations

import asyncio

import pytest

from shoal.discovery.advert import Advert
from shoal.discovery.base import choose
from shoal.discovery.mdns import MdnsRegistry, service_info
from shoal.discovery.redis import RedisRegistry
from shoal.discovery.redis_url import parse
from shoal.discovery.registry import open_registry
from shoal.discovery.static import StaticRegistry
from shoal.errors import ClusterError, ConfigError

REEF = Advert(cluster="reef", host="192.168.1.5", control_port=7420)


@pytest.mark.parametrize(
    ("setting", "kind"),
    [("none", StaticRegistry), ("mdns", MdnsRegistry), ("redis://box:6379/0", RedisRegistry), ("rediss://:secret@box", RedisRegistry)],
)
def test_a_setting_opens_its_registry(setting: str, kind: type):
    async def scenario() -> None:
        registry = open_registry(setting)
        assert isinstance(registry, kind)
        assert "secret" not in repr(registry)
        await registry.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("setting", ["", "bonjour", "MDNS", "redis:/:secret@box", "unix://secret"])
def test_any_other_setting_is_refused_with_the_choices(setting: str):
    with pytest.raises(ConfigError, match=r"not one of mdns, none, redis://") as caught:
        open_registry(setting)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("192.168.1.5:7420", "192.168.1.5", 7420), ("[fd00::5]:1", "fd00::5", 1), ("box.lan:65535", "box.lan", 65535)],
)
def test_a_given_address_is_found(address: str, host: str, port: int):
    found = asyncio.run(StaticRegistry(address).find(None, 1))
    assert (found.host, found.control_port, found.address) == (host, port, address)
    assert asyncio.run(StaticRegistry(address).find("reef", 1)).cluster == "reef"


@pytest.mark.parametrize(
    "address", ["", "box", "box:", ":1", "box:0", "box:65536", "box:٣", "fd00::5:1", "[box:1", "a b:1", "10.0.0.999:1"]
)
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(ConfigError, match=r"write (HOST:PORT|\[fd00::5\]:1)"):
        StaticRegistry(address)


def test_without_discovery_the_address_must_be_given():
    async def scenario() -> None:
        registry = open_registry("none")
        await registry.announce(REEF)
        await registry.update(REEF)
        with pytest.raises(ClusterError, match=r"discovery is off.*shoal join HOST:PORT"):
            await registry.find(None, 1)
        await registry.close()

    asyncio.run(scenario())


def test_two_clusters_of_one_name_are_told_apart_by_address():
    with pytest.raises(ClusterError, match=r"(?s)2 clusters are called reef.*10\.0\.0\.1:7420.*192\.168\.1\.5:7420"):
        choose([REEF, REEF.at("10.0.0.1")], "reef")
    assert choose([REEF, REEF], "reef") == REEF


def test_two_clusters_of_one_name_are_two_service_instances():
    one, other = service_info(REEF, []), service_info(REEF.at("10.0.0.1"), [])
    assert one.name != other.name and one.server != other.server
    assert service_info(REEF, []).name == one.name  # the same head, started again


def test_names_fit_their_dns_labels():
    info = service_info(Advert(cluster="a" * 48, host="10.0.0.1", control_port=1), [])
    assert max(len(label) for label in f"{info.name}{info.server}".split(".")) <= 63


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://box", "redis://box"),
        ("redis://:secret@box:6380/2", "redis://:***@box:6380/2"),
        ("rediss://me:se%63ret@[fd00::5]:1", "rediss://me:***@[fd00::5]:1"),
        ("redis://me@box/", "redis://me@box"),
        ("redis://:secret@box?ssl_ca_certs=/secret", "redis://:***@box"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str):
    parsed = parse(url)
    assert parsed.shown == shown and repr(parsed) == f"RedisUrl({shown})"
    told = parsed.told(ValueError("ERR unknown command 'AUTH secret', se%63ret"))
    assert "password" not in url and (":***@" not in shown or "secret'" not in told)


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://:secret@",
        "redis://:secret@box:0",
        "redis://:secret@box:port",
        "redis://:sec/ret@box",
        "redis://:sec#ret@box",
        "redis://:sec?ret@box",
        "redis://:secret@box/zero",
        "redis://box?password=secret",
        "redis://:secret@box?ssl_cert_reqs=none",
        "redis://[:secret@box",
        "http://:secret@box",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str):
    with pytest.raises(ConfigError) as caught:
        parse(url)
    assert "sec" not in str(caught.value)
    assert caught.value.__cause__ is None
