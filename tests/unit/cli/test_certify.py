"""`shoal nodes certify`: credentials that a head of the same authority takes from a node."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.app import app
from shoal.errors import ConfigError
from shoal.launch.keys import authority
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    return tmp_path / "node.pem"


def test_it_writes_a_nodes_credentials_for_its_owner_alone(target: Path) -> None:
    done = CliRunner().invoke(app, ["nodes", "certify", "-o", str(target), "--name", "pool", "--days", "30"])
    assert done.exit_code == 0, done.output
    made = Credentials.load(target)  # which refuses a file that others may read
    made.check(NOW)
    assert (made.role, made.name, made.authority_fingerprint) == (Role.NODE, "pool", authority().fingerprint)
    assert dt.timedelta(days=29) < made.expires - NOW < dt.timedelta(days=31)


def test_it_writes_a_gateways_too(target: Path) -> None:
    assert CliRunner().invoke(app, ["nodes", "certify", "-o", str(target), "--gateway"]).exit_code == 0
    assert Credentials.load(target).role is Role.GATEWAY


def test_another_one_is_of_the_same_authority_and_has_its_own_key(target: Path) -> None:
    made: list[Credentials] = []
    for _ in range(2):
        assert CliRunner().invoke(app, ["nodes", "certify", "-o", str(target)]).exit_code == 0
        made.append(Credentials.load(target))
    assert made[0].authority == made[1].authority and made[0].private_key != made[1].private_key


def test_an_impossible_name_writes_nothing(target: Path) -> None:
    done = CliRunner().invoke(app, ["nodes", "certify", "-o", str(target), "--name", " "])
    assert isinstance(done.exception, ConfigError) and not target.exists()


def test_a_witness_gets_a_certificate_that_no_node_has(target: Path) -> None:
    assert CliRunner().invoke(app, ["nodes", "certify", "-o", str(target), "--witness"]).exit_code == 0
    assert Credentials.load(target).role is Role.WITNESS
