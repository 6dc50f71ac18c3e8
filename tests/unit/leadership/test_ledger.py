"""A witness's leases: what its file says after a restart, and what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError, QueueFull
from shoal.leadership.ledger import MOST, WitnessLedger
from shoal.leadership.witness_protocol import Acquire, Inquire, Release, Renew, State
from tests.support.clock import Clock

D = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases.json"


def acquire(owner: str, cluster: str = "reef", floor: int = 0) -> Acquire:
    return Acquire(cluster, owner, f"{owner}:7420", floor, D)


def opened(path: Path, now: float = 0.0) -> tuple[WitnessLedger, Clock]:
    return WitnessLedger(path, clock := Clock(now)), clock


def waited(path: Path) -> tuple[WitnessLedger, Clock]:
    ledger, clock = opened(path)
    clock.now = D
    return ledger, clock


def test_one_that_knows_nothing_waits_for_a_duration(path: Path):
    ledger, clock = opened(path, 100.0)
    clock.now = 100.0 + D - 0.01
    assert ledger.acquire(acquire("a")) == State(False, 0)
    clock.now = 100.0 + D
    assert ledger.acquire(acquire("a")) == State(True, 1, "a:7420")


def test_a_grant_outlives_a_restart_and_others_wait_for_its_duration(path: Path):
    ledger, _ = waited(path)
    ledger.acquire(acquire("a"))
    again, clock = opened(path, 5000.0)  # another boot, another clock
    assert again.inquire(Inquire("reef")) == State(True, 1, "a:7420")
    assert not again.acquire(acquire("b")).granted
    clock.now += D - 0.01
    assert again.renew(Renew("reef", "a", 1, D)).granted
    clock.now += D - 0.01
    assert not again.acquire(acquire("b")).granted
    clock.now += 0.01
    assert again.acquire(acquire("b")) == State(True, 2, "b:7420")


def test_after_a_release_a_restarted_one_grants_at_once(path: Path):
    ledger, _ = waited(path)
    ledger.acquire(acquire("a"))
    assert ledger.release(Release("reef", "a", 1)).granted
    again, _ = opened(path)
    assert again.acquire(acquire("b")) == State(True, 2, "b:7420")


def test_a_term_is_above_what_the_head_knows(path: Path):
    ledger, _ = waited(path)
    assert ledger.acquire(acquire("a", floor=41)).term == 42


def test_only_the_owner_of_that_term_renews_and_releases(path: Path):
    ledger, _ = waited(path)
    ledger.acquire(acquire("a"))
    ledger.acquire(acquire("a"))
    for owner, term in (("b", 2), ("a", 1), ("a", 3)):
        assert not ledger.renew(Renew("reef", owner, term, D)).granted
        assert not ledger.release(Release("reef", owner, term)).granted
    assert ledger.renew(Renew("reef", "a", 2, D)).granted


def test_a_grant_that_cannot_be_written_is_not_made(path: Path):
    ledger, clock = waited(path)
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.write_text("a file where the folder was")
    with pytest.raises(ConfigError, match="cannot write"):
        ledger.acquire(acquire("a"))
    assert ledger.inquire(Inquire("reef")) == State(True, 0)
    path.parent.unlink()
    path.parent.with_name("moved").rename(path.parent)
    assert ledger.acquire(acquire("b")) == State(True, 1, "b:7420")
    assert clock.now == D


def test_it_takes_as_many_clusters_as_its_file_may_hold(path: Path):
    ledger, _ = waited(path)
    long = "\\" * 128
    for i in range(MOST):
        assert ledger.acquire(Acquire(f"{i:03}".rjust(128, '"'), long, long, 0, D)).granted
    with pytest.raises(QueueFull):
        ledger.acquire(acquire("a", "one too many"))
    assert ledger.inquire(Inquire("one too many")) == State(True, 0)
    again, _ = opened(path)
    assert again.inquire(Inquire("000".rjust(128, '"'))).term == 1


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 1, "clusters": {"reef": 1}}', b"\xff\xfe"])
def test_a_file_that_is_none_of_its_own_stops_it(path: Path, data: bytes):
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"does not hold the leases.*delete it: the witness then waits"):
        opened(path)


def test_a_file_that_others_could_read_stops_it_and_needs_no_pairing(path: Path):
    path.write_bytes(b'{"version": 1, "clusters": {}}')
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"open to other users.*the witness then waits") as refused:
        opened(path)
    assert "pair" not in str(refused.value)


def test_a_file_of_another_version_stops_it(path: Path):
    path.write_bytes(b'{"version": 2, "clusters": {}}')
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="another version"):
        opened(path)


steps = st.lists(
    st.tuples(st.sampled_from(["acquire", "renew", "release", "restart", "wait"]), st.integers(0, 2), st.floats(0, 1.5 * D)), max_size=40
)


@given(steps=steps)
def test_grants_never_overlap_and_terms_grow(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, float]]):
    """Over restarts at any moment: `ends` is when each head's last grant is over, by true time."""
    path = tmp_path_factory.mktemp("witness") / "leases.json"
    ledger, clock = waited(path)
    ends, terms, last = [0.0] * 3, [0] * 3, 0
    for what, who, seconds in steps:
        name = f"head-{who}"
        if what == "wait":
            clock.now += seconds
        elif what == "restart":
            ledger = WitnessLedger(path, clock)
        elif what == "release":
            ledger.release(Release("reef", name, terms[who]))
            ends[who] = 0.0
        else:
            asked = acquire(name) if what == "acquire" else Renew("reef", name, terms[who], D)
            state = ledger.acquire(asked) if isinstance(asked, Acquire) else ledger.renew(asked)
            if not state.granted:
                continue
            assert all(end <= clock.now for other, end in enumerate(ends) if other != who)
            if isinstance(asked, Acquire):
                assert state.term > last
                last = terms[who] = state.term
            ends[who] = clock.now + D
