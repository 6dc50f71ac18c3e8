"""Which keys a command line uses, and when it goes without."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shoal.cli import credentials as keys
from shoal.config import HeadSettings, NodeSettings
from shoal.discovery.advert import Advert
from shoal.errors import ClusterError, ConfigError
from shoal.launch.keys import authority, kept_path
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials

HERE, THERE = "127.0.0.1:7420", "192.0.2.1:7420"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "cache"))
    return tmp_path


def pair_with(home: Path, name: str) -> None:
    Authority.open(home / "theirs").credentials(Role.NODE, "me").save(kept_path(name))


def asked(address: str) -> list[bool]:
    """Whether each try, none of which is answered, was a protected one."""
    tries: list[bool] = []

    async def ask(credentials: Credentials | None) -> None:
        tries.append(credentials is not None)
        raise ClusterError("nobody")

    with pytest.raises(ClusterError, match="nobody"):
        asyncio.run(keys.as_operator(address, ask))
    return tries


def test_a_head_that_this_machine_has_paired_with_is_not_asked_without_protection(home: Path):
    pair_with(home, THERE)
    assert asked(THERE) == [True]


def test_a_head_of_this_machine_and_one_that_is_not_known_may_be_unprotected(home: Path):
    pair_with(home, HERE)
    assert asked(HERE) == [True, False]
    assert asked(THERE) == [False]


def test_a_head_that_is_no_address_is_the_users_mistake(home: Path):
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        asyncio.run(keys.as_operator("nowhere", lambda credentials: asyncio.sleep(0)))


@pytest.mark.parametrize("known", ["home", THERE])
def test_an_advert_cannot_talk_a_paired_node_out_of_its_certificate(home: Path, known: str):
    pair_with(home, known)
    stranger = Advert("home", "192.0.2.1", 7420, secure=False)
    with pytest.raises(ConfigError, match="is not protected"):
        asyncio.run(keys.node_credentials(NodeSettings(), stranger.address, stranger))


def test_a_node_that_never_paired_joins_an_unprotected_cluster(home: Path):
    found = Advert("home", "192.0.2.1", 7420, secure=False)
    assert asyncio.run(keys.node_credentials(NodeSettings(), found.address, found)) is None


def test_a_standbys_certificate_and_a_nodes_of_one_machine_are_kept_apart(home: Path):
    pair_with(home, THERE)
    settings = HeadSettings(host="192.0.2.2", lease="witness://192.0.2.3:7430", standby=THERE)
    assert (made := asyncio.run(keys.standby_credentials(settings))) is not None
    assert made.authority == authority().credentials(Role.HEAD, "head").authority, "it has not paired as a head"
    theirs = Authority.open(home / "theirs").credentials(Role.HEAD, "me")
    theirs.save(kept_path(THERE, Role.HEAD))
    assert asyncio.run(keys.standby_credentials(settings)) == theirs
    node = asyncio.run(keys.node_credentials(NodeSettings(), THERE))
    assert node is not None and node.role is Role.NODE


def test_a_nodes_certificate_is_none_of_a_standby(home: Path):
    Authority.open(home / "theirs").credentials(Role.NODE, "me").save(kept_path(THERE, Role.HEAD))
    settings = HeadSettings(host="192.0.2.2", lease="witness://192.0.2.3:7430", standby=THERE)
    with pytest.raises(ConfigError, match="holds a node's certificate, not a head's; delete it and pair"):
        asyncio.run(keys.standby_credentials(settings))


def test_a_standby_asks_its_leader_with_the_certificate_of_a_head(home: Path):
    Authority.open(home / "theirs").credentials(Role.HEAD, "me").save(kept_path(THERE, Role.HEAD))
    assert asked(THERE) == [True]


def test_each_address_and_name_has_a_file_of_its_own(home: Path):
    names = ["[::1]:7420", "[1::]:7420", "192.0.2.1:7420", "a-b", "a_b", "ab"]
    assert len({kept_path(name, role) for name in names for role in Role}) == len(names) * len(Role)
    assert all(kept_path(name).parent == home / "cache" / "keys" for name in names)
    assert kept_path(THERE).name == "192.0.2.1-7420.pem"
