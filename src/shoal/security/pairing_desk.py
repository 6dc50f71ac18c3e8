"""Decides who may try a pairing code, and how often. Pure: `now` and randomness are arguments.

The exchange gives a stranger one guess per answer of the head and nothing to compute on afterwards. So the desk counts answers:
once answered, a conversation counts as a wrong guess until it proves otherwise. With 35 secret bits and ten guesses per code, a
stranger who never stops guesses right with a probability of 3e-10 per code. Guesses from one address are limited sooner
(`pairing_tally`).

    code ── used ──▶ next code                     nameplates go round the alphabet,
      │ ── lifetime over ──▶ next code             so the last 31 codes can be told apart
      └─── ten guesses, none proved ──▶ next code  and refused by name, at no guess
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable

from shoal.security.pairing_code import ALPHABET, PairingCode
from shoal.security.pairing_tally import PairingTally
from shoal.security.refusal import Refusal, refused

GUESSES = 10  # per code
FREE = 3  # guesses in a row without a pause: several machines may pair at once, and people mistype
LONGEST_WAIT = 60.0  # seconds


def pause(unproved: int) -> float:
    """Seconds before the next guess, after `unproved` unsuccessful guesses in a row."""
    return 0.0 if unproved < FREE else min(2.0 ** min(unproved - FREE, 10), LONGEST_WAIT)


@dataclasses.dataclass(frozen=True)
class Ticket:
    """One guess at one code."""

    code: PairingCode
    number: int
    address: str


class PairingDesk:
    def __init__(
        self,
        lifetime: float = 3600.0,
        on_code: Callable[[PairingCode], None] | None = None,
        randbelow: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        """`lifetime` of a code in seconds. `on_code` is called with each new code, so that the head can show it."""
        self._lifetime = lifetime
        self._on_code = on_code
        self._randbelow = randbelow
        self._next = randbelow(len(ALPHABET))
        self._fates: dict[str, Refusal] = {}
        self._code: PairingCode | None = None
        self._expires = 0.0
        self._number = 0
        self._guesses = 0  # at this code
        self._open: set[int] = set()  # numbers of the tickets for this code whose conversations are still open
        self._unproved = 0  # in a row, over all codes
        self._free_at = 0.0
        self._tally = PairingTally()

    def code(self, now: float) -> PairingCode:
        """The code to show; a new one if there is none or it has expired."""
        if self._code is None or now >= self._expires:
            return self._replace(Refusal.EXPIRED, now)
        return self._code

    def expires(self, now: float) -> float:
        """Seconds until the code expires."""
        self.code(now)
        return self._expires - now

    def admit(self, nameplate: str, now: float, address: str = "") -> Ticket:
        """Admits a guess. It counts as wrong until `settle`, also for the address that it came from if known. Raises PairingRefused."""
        code = self.code(now)
        if nameplate != code.nameplate:
            raise refused(self._fates.get(nameplate, Refusal.UNKNOWN))
        own = self._tally.wait(address, now) if address else 0.0
        if own or now < self._free_at or self._guesses >= GUESSES:
            raise refused(Refusal.WAIT, max(own, self._free_at - now, 1.0))
        if address:
            self._tally.guessed(address, now)
        self._number += 1
        self._guesses += 1
        self._unproved += 1
        self._free_at = now + pause(self._unproved)
        self._open.add(self._number)
        return Ticket(code, self._number, address)

    def settle(self, ticket: Ticket, now: float) -> None:
        """The guess was right: the code is used up. Raises PairingRefused if the code has ended meanwhile."""
        self.code(now)
        if ticket.number not in self._open:
            raise refused(self._fates.get(ticket.code.nameplate, Refusal.UNKNOWN))
        self._unproved, self._free_at = 0, now
        self._tally.proved(ticket.address)
        self._replace(Refusal.USED, now)

    def abandon(self, ticket: Ticket, now: float) -> None:
        """The conversation is over; after `settle` this does nothing."""
        self._open.discard(ticket.number)
        if self._guesses >= GUESSES and not self._open:
            self._replace(Refusal.REPLACED, now)

    def _replace(self, fate: Refusal, now: float) -> PairingCode:
        if self._code is not None:
            self._fates[self._code.nameplate] = fate
        nameplate = ALPHABET[self._next]
        self._next = (self._next + 1) % len(ALPHABET)
        self._fates.pop(nameplate, None)
        self._code = PairingCode.draw(nameplate, self._randbelow)
        self._expires = now + self._lifetime
        self._guesses = 0
        self._open.clear()
        if self._on_code is not None:
            self._on_code(self._code)
        return self._code
