"""Keys at rest and in a running server."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError, NotAuthenticated
from shoal.gateway.auth import keyring as module
from shoal.gateway.auth.key import KeyId, KeyLimits, KeyRole, mint, parted
from shoal.gateway.auth.key_store import KeyStore, Use
from shoal.gateway.auth.keyring import REFRESH, Keyring
from shoal.request import Priority
from tests.support.http import eventually

NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "api")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(store: KeyStore, clock: Clock) -> Keyring:
    return Keyring(store.path.parent, clock)


# At rest


def test_a_token_is_its_id_and_its_secret() -> None:
    id, token, digest = mint()
    parts = parted(token)
    assert parts is not None and parts[0] == id
    assert hashlib.sha256(parts[1]).digest() == digest
    assert len({mint()[1] for _ in range(50)}) == 50


@given(st.text())
def test_what_is_no_token_has_no_parts(text: str) -> None:
    assert parted(text) is None


def test_no_file_appears_before_the_first_key(store: KeyStore) -> None:
    assert store.all() == [] and store.version() == 0
    assert not store.path.parent.exists()


def test_what_a_key_may_do_is_kept_and_its_secret_is_not(store: KeyStore) -> None:
    limits = KeyLimits(requests=5, tokens=600, concurrency=2)
    key, token = store.create("alice", NOW, limits, NOW + 60, Priority.BATCH)
    assert store.all() == [key]
    assert (key.limits, key.expires, key.priority) == (limits, NOW + 60, Priority.BATCH)
    secret = token.rsplit("-", 1)[1] if token.count("-") == 3 else token.split("-", 3)[3]
    kept = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    assert secret.encode() not in kept and key.digest in kept


def test_only_the_owner_may_read_the_file(store: KeyStore) -> None:
    store.create("alice", NOW)
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.path.parent.iterdir()} == {0o600}


def test_a_file_that_others_can_read_is_not_used(store: KeyStore) -> None:
    store.create("alice", NOW)
    store.path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        store.all()


def test_a_file_of_something_else_is_not_used(store: KeyStore) -> None:
    store.path.parent.mkdir()
    store.path.write_bytes(b"no database at all, but long enough to be read as one" * 40)
    store.path.chmod(0o600)
    with pytest.raises(ConfigError, match="not a key file"):
        store.all()


def test_a_file_of_another_version_is_not_used(store: KeyStore) -> None:
    store.create("alice", NOW)
    with sqlite3.connect(store.path) as file:
        file.execute("PRAGMA user_version = 9")
    file.close()
    with pytest.raises(ConfigError, match="another version"):
        store.all()


def test_a_name_is_taken_while_its_key_is_good(store: KeyStore) -> None:
    store.create("alice", NOW)
    with pytest.raises(ConfigError, match="alice already exists"):
        store.create("alice", NOW)
    store.revoke("alice", NOW)
    store.create("alice", NOW, expires=NOW + 1)
    store.create("alice", NOW + 2)


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "\x1b[31m"])
def test_names_that_cannot_be_shown_are_refused(store: KeyStore, name: str) -> None:
    with pytest.raises(ConfigError, match="printable"):
        store.create(name, NOW)


def test_a_key_is_revoked_by_name_or_id_once(store: KeyStore) -> None:
    key, _ = store.create("alice", NOW)
    assert store.revoke(key.id, NOW + 1).name == "alice"
    assert store.all()[0].revoked == NOW + 1
    with pytest.raises(ConfigError, match="no key alice"):
        store.revoke("alice", NOW)


def test_use_adds_up(store: KeyStore) -> None:
    key, _ = store.create("alice", NOW)
    store.add({key.id: Use(1, 10, 5, NOW + 5), KeyId("gone"): Use(1, 1, 1, NOW)})
    store.add({key.id: Use(2, 20, 7, NOW + 3)})
    (kept,) = store.all()
    assert (kept.requests, kept.prompt_tokens, kept.completion_tokens, kept.last_used) == (3, 30, 12, NOW + 5)


# In a running server


def test_without_keys_nobody_needs_one(ring: Keyring) -> None:
    assert not ring.required and not ring.usable


def test_a_key_that_is_made_later_is_asked_for(ring: Keyring, store: KeyStore, clock: Clock) -> None:
    assert not ring.required
    _, token = store.create("alice", NOW)
    clock.now += REFRESH
    assert ring.required
    assert ring.admit(token).name == "alice"


def test_a_revoked_key_is_let_in_no_longer_and_opens_nothing(ring: Keyring, store: KeyStore, clock: Clock) -> None:
    _, token = store.create("alice", NOW)
    clock.now += REFRESH
    ring.admit(token)
    store.revoke("alice", NOW)
    clock.now += REFRESH
    with pytest.raises(NotAuthenticated):
        ring.admit(token)
    assert ring.required and not ring.usable


def test_a_key_expires_to_the_second(store: KeyStore, clock: Clock) -> None:
    _, token = store.create("alice", NOW, expires=NOW + 10)
    ring = Keyring(store.path.parent, clock)
    clock.now = NOW + 9.9
    ring.admit(token)
    clock.now = NOW + 10
    with pytest.raises(NotAuthenticated):
        ring.admit(token)


def test_what_is_refused_says_nothing_about_keys(store: KeyStore, clock: Clock) -> None:
    _, good = store.create("good", NOW)
    _, revoked = store.create("revoked", NOW)
    _, expired = store.create("expired", NOW, expires=NOW)
    store.revoke("revoked", NOW)
    ring = Keyring(store.path.parent, clock)
    wrong = good[:-4] + ("AAAA" if not good.endswith("AAAA") else "BBBB")
    said: set[str] = set()
    for token in (revoked, expired, wrong, mint()[1], "nonsense", good + "x", good.upper()):
        with pytest.raises(NotAuthenticated) as caught:
            ring.admit(token)
        said.add(str(caught.value))
    assert len(said) == 1
    assert ring.admit(good).name == "good"


def test_use_is_written_down_in_batches(ring: Keyring, store: KeyStore, clock: Clock) -> None:
    key, _ = store.create("alice", NOW)
    for _ in range(3):
        ring.used(key.id, requests=1, prompt=7)
        ring.used(key.id, completion=1)
    assert store.all()[0].requests == 0
    ring.flush()
    (kept,) = store.all()
    assert (kept.requests, kept.prompt_tokens, kept.completion_tokens, kept.last_used) == (3, 21, 3, NOW)


def test_use_that_cannot_be_written_down_is_kept_for_later(ring: Keyring, store: KeyStore) -> None:
    key, _ = store.create("alice", NOW)
    ring.used(key.id, requests=1)
    store.path.chmod(0o644)
    ring.flush()
    store.path.chmod(0o600)
    assert store.all()[0].requests == 0
    ring.flush()
    assert store.all()[0].requests == 1


def test_a_server_that_ends_writes_down_what_is_left(ring: Keyring, store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = store.create("alice", NOW)
    monkeypatch.setattr(module, "FLUSH", 0.01)

    async def go() -> None:
        keeping = asyncio.ensure_future(ring.keep())
        ring.used(key.id, requests=1)
        await eventually(lambda: store.all()[0].requests)
        ring.used(key.id, requests=1)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(go())
    assert store.all()[0].requests == 2


def test_keys_that_cannot_be_read_any_more_stay_as_they_were_until_they_can(ring: Keyring, store: KeyStore, clock: Clock) -> None:
    _, token = store.create("alice", NOW)
    clock.now += REFRESH
    ring.admit(token)
    store.revoke("alice", NOW)
    store.path.chmod(0o644)
    clock.now += REFRESH
    ring.admit(token)
    store.path.chmod(0o600)
    clock.now += REFRESH
    with pytest.raises(NotAuthenticated):
        ring.admit(token)


def test_keys_of_a_file_without_roles_are_users(store: KeyStore) -> None:
    key, token = store.create("alice", 1.0, role=KeyRole.OPERATOR)
    with sqlite3.connect(store.path) as file:
        file.execute("ALTER TABLE keys DROP COLUMN role")
        file.execute("PRAGMA user_version = 1")
    file.close()
    again = KeyStore(store.path.parent)
    assert [(one.id, one.role) for one in again.all()] == [(key.id, KeyRole.USER)]
    assert Keyring(store.path.parent).admit(token).role is KeyRole.USER
    again.create("bob", 2.0, role=KeyRole.OPERATOR)
    assert [one.role for one in again.all()] == [KeyRole.USER, KeyRole.OPERATOR]
