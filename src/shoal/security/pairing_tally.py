"""Unsuccessful guesses at pairing codes, by where they came from. Pure: `now` is an argument.

The desk limits what all strangers together may try. The tally limits each of them, sooner and for longer, so that whoever keeps
trying has to wait, and not everybody.
"""

from __future__ import annotations

import dataclasses
import ipaddress

FREE = 3  # guesses in a row without a pause: people mistype
FIRST_WAIT = 10.0  # seconds, doubled with each guess
LONGEST_WAIT = 600.0
FORGOTTEN = 3600.0  # seconds after the last guess


def neighbourhood(address: str) -> str:
    """What counts as one place: an IPv4 address; the first 64 bits of an IPv6 address, since whoever has one address in that
    range has all."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))


@dataclasses.dataclass
class _Guesses:
    count: int
    last: float
    free_at: float


class PairingTally:
    def __init__(self) -> None:
        self._guesses: dict[str, _Guesses] = {}

    def wait(self, address: str, now: float) -> float:
        """Seconds until a guess from that address is accepted; 0: now."""
        known = self._guesses.get(neighbourhood(address))
        return 0.0 if known is None else max(known.free_at - now, 0.0)

    def guessed(self, address: str, now: float) -> None:
        """Counts one more guess, wrong until `proved`."""
        self._guesses = {place: g for place, g in self._guesses.items() if now - g.last < FORGOTTEN}
        known = self._guesses.setdefault(neighbourhood(address), _Guesses(0, now, now))
        known.count, known.last = known.count + 1, now
        if known.count >= FREE:
            known.free_at = now + min(FIRST_WAIT * 2.0 ** min(known.count - FREE, 10), LONGEST_WAIT)

    def proved(self, address: str) -> None:
        """A guess from there was right: its other guesses are forgiven."""
        self._guesses.pop(neighbourhood(address), None)
