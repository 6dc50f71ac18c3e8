"""`shoal keys`, and a server that hears of what it does."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from typer.testing import CliRunner

from shoal.cli.app import app
from shoal.cli.cluster import _check_open
from shoal.cli.keys import expiry
from shoal.config import ApiSettings, HeadSettings
from shoal.errors import ConfigError
from shoal.gateway.auth.key_store import KeyStore
from tests.support.cluster import cluster, served, until

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DATA", str(tmp_path))


def keys(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["keys", *arguments])


def listed() -> list[dict[str, Any]]:
    return json.loads(keys("list", "--json").stdout)


@pytest.mark.parametrize(("text", "when"), [("", None), ("90d", NOW + 90 * 86400), ("12h", NOW + 43200), ("2030-01-01", 1893456000.0)])
def test_when_a_key_expires(text: str, when: float | None) -> None:
    assert expiry(text, NOW) == when


@pytest.mark.parametrize("text", ["soon", "5", "-3d", "2020-01-01", "2030-13-01", "1y"])
def test_what_is_no_time_to_come_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--expires"):
        expiry(text, NOW)


def test_a_key_is_shown_once(tmp_path: Path) -> None:
    made = keys(
        "create", "alice", "--rpm", "60", "--concurrency", "4", "--tokens-per-minute", "9000", "--priority", "flex", "--expires", "90d"
    )
    assert made.exit_code == 0
    token = made.stdout.strip().splitlines()[0]
    assert token.startswith("sk-shoal-")
    (key,) = listed()
    assert (key["name"], key["state"], key["rpm"], key["concurrency"], key["tokens_per_minute"]) == ("alice", "good", 60, 4, 9000)
    assert (key["priority"], key["requests"], key["last_used"]) == ("flex", 0, None)
    assert token not in keys("list").stdout + keys("list", "--json").stdout
    assert KeyStore(tmp_path).path.exists()


def test_a_key_for_a_script_is_json() -> None:
    made = json.loads(keys("create", "ci", "--json").stdout)
    assert (made["name"], made["key"].startswith("sk-shoal-"), made["rpm"]) == ("ci", True, None)


def test_a_revoked_key_stays_in_the_list() -> None:
    keys("create", "alice")
    assert keys("revoke", "alice").exit_code == 0
    assert [key["state"] for key in listed()] == ["revoked"]


def test_the_list_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    keys("create", "alice", "--rpm", "60", "--concurrency", "4", "--priority", "flex", "--expires", "2100-01-31")
    keys("revoke", "alice")
    shown = keys("list").stdout
    assert listed()[0]["id"] in shown and "…" not in shown
    assert all(part in shown for part in ("alice", "revoked", "60/min", "4 at", "flex", "2100-01-31"))


def test_without_keys_the_list_says_what_that_means() -> None:
    done = keys()
    assert done.exit_code == 0 and "this machine alone" in done.output


@pytest.mark.parametrize(
    "arguments", [("revoke", "nobody"), ("create", ""), ("create", "x", "--priority", "first"), ("create", "x", "--expires", "?")]
)
def test_what_cannot_be_done_is_an_error_of_the_user(arguments: tuple[str, ...]) -> None:
    done = keys(*arguments)
    assert isinstance(done.exception, ConfigError)
    assert listed() == []


def test_an_address_of_the_network_wants_a_key_that_is_good(tmp_path: Path) -> None:
    settings = HeadSettings(api=ApiSettings(api_host="192.0.2.1", data=str(tmp_path)))
    with pytest.raises(ConfigError, match="shoal keys create"):
        _check_open(settings)
    _check_open(HeadSettings(api=ApiSettings(api_host="192.0.2.1", data=str(tmp_path), open_api=True)))
    keys("create", "alice")
    _check_open(settings)
    keys("revoke", "alice")
    with pytest.raises(ConfigError, match="shoal keys create"):
        _check_open(settings)


def test_keys_are_worth_nothing_beside_a_gateway_port_that_anyone_may_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api = ApiSettings(data=str(tmp_path))
    everywhere = HeadSettings(api=api, host="192.0.2.1", unprotected=True, gateway_port=7424)
    _check_open(everywhere)
    assert "do what operators may" in " ".join(capsys.readouterr().err.split())
    keys("create", "alice")
    keys("revoke", "alice")  # which opens nothing
    with pytest.raises(ConfigError, match="--gateway-port"):
        _check_open(everywhere)
    for other in ({"unprotected": False}, {"gateway_port": 0}, {"host": "127.0.0.1"}):
        _check_open(dataclasses.replace(everywhere, **other))


def test_serve_says_so_before_it_fetches_anything(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        head = made.start("serve", "--api-host", "0.0.0.0", "--port", "0", "--model", "/no/such.gguf", "--data", str(tmp_path / "data"))
        assert head.wait() == 2
        assert "shoal keys create" in head.said and "no/such" not in head.said


@pytest.mark.real
@pytest.mark.slow
def test_a_running_server_hears_of_keys_within_a_second_and_counts_their_use(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    with served(tmp_path, 1, *data) as made:
        assert made.complete("Hi", 2).status_code == 200
        token = json.loads(keys("create", "alice", "--rpm", "100", *data, "--json").stdout)["key"]
        until(lambda: made.complete("Hi", 2).status_code == 401, bound=10)
        with httpx.Client(base_url=made.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=60) as alice:
            asked = [alice.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 5, "temperature": 0}) for _ in range(2)]
            assert [answer.headers["x-ratelimit-remaining-requests"] for answer in asked] == ["99", "98"]
            run = CliRunner().invoke(app, ["run", "Hi", "--url", made.url, "--max-tokens", "4", "--api-key", token])
            assert run.exit_code == 0, run.output
            keys("revoke", "alice", *data)
            until(lambda: alice.get("/v1/models").status_code == 401, bound=10)
        made.head.signal(signal.SIGTERM)
        assert made.head.wait() == 0
        (key,) = json.loads(keys("list", *data, "--json").stdout)
        assert (key["requests"], key["completion_tokens"] >= 12, key["state"]) == (3, True, "revoked")
        assert key["last_used"] is not None
