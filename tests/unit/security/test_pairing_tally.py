"""Guesses are counted by where they come from, and one stranger's are bounded before everybody's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import PairingRefused
from shoal.security.pairing_desk import PairingDesk
from shoal.security.pairing_tally import FIRST_WAIT, FORGOTTEN, FREE, LONGEST_WAIT, PairingTally, neighbourhood

EVE, ANNA = "10.0.0.66", "10.0.0.1"


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_what_is_one_place(address: str, place: str) -> None:
    assert neighbourhood(address) == place


def test_after_three_guesses_a_place_waits_longer_and_longer() -> None:
    tally, now, waits = PairingTally(), 0.0, list[float]()
    for _ in range(FREE + 8):
        tally.guessed(EVE, now)
        waits.append(tally.wait(EVE, now))
        now += waits[-1]
    assert waits == [0, 0, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert waits[FREE - 1] == FIRST_WAIT and waits[-1] == LONGEST_WAIT
    assert tally.wait(ANNA, 0) == 0


def test_a_guess_that_was_right_forgives_the_others_and_an_hour_does_too() -> None:
    tally = PairingTally()
    for _ in range(FREE):
        tally.guessed(EVE, 0)
        tally.guessed(ANNA, 0)
    tally.proved(ANNA)
    assert tally.wait(ANNA, 0) == 0 and tally.wait(EVE, 0) == FIRST_WAIT
    tally.guessed(EVE, FORGOTTEN)
    assert tally.wait(EVE, FORGOTTEN) == 0


@given(st.integers(0, 99), st.integers(1, 40))
def test_however_long_one_stranger_tries_another_machine_waits_a_second_at_most(seed: int, minutes: int) -> None:
    """The stranger guesses whenever it is let; the machine comes at some moment of that time."""
    draw = random.Random(seed)
    desk, now, end = PairingDesk(lifetime=1e6, randbelow=draw.randrange), 0.0, minutes * 60.0
    taken = 0
    while now < end:
        try:
            desk.abandon(desk.admit(desk.code(now).nameplate, now, EVE), now)
            taken += 1
        except PairingRefused as error:
            now += max(draw.uniform(0, error.wait), 0.1)
    assert taken <= FREE + 3 + minutes
    now += LONGEST_WAIT  # of the pauses that hold for all, which its guesses have earned
    ticket = desk.admit(desk.code(now).nameplate, now, ANNA)
    desk.settle(ticket, now)


def test_strangers_from_everywhere_are_bounded_together() -> None:
    desk = PairingDesk(randbelow=random.Random(0).randrange)
    taken = 0
    for host in range(100):
        try:
            desk.admit(desk.code(0).nameplate, 0, f"10.0.0.{host}")
            taken += 1
        except PairingRefused:
            continue
    assert taken == FREE
