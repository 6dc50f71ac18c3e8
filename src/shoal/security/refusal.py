"""Why the head refuses a node, as a number on the wire and as a sentence for the person at the node."""

from __future__ import annotations

import enum
import math

from shoal.errors import PairingRefused


class Refusal(enum.IntEnum):
    WRONG_CODE = 1
    USED = 2
    EXPIRED = 3
    REPLACED = 4
    UNKNOWN = 5
    WAIT = 6
    BUSY = 7
    BAD_REQUEST = 8


_CURRENT = "read the current one from the head"
_SENTENCES = {
    Refusal.WRONG_CODE: f"the pairing code is wrong, or someone between this machine and the head pretends to be it; {_CURRENT}",
    Refusal.USED: f"this pairing code was used already, each is good for one machine; {_CURRENT}",
    Refusal.EXPIRED: f"this pairing code has expired; {_CURRENT}",
    Refusal.REPLACED: f"this pairing code was replaced after too many wrong tries; {_CURRENT}",
    Refusal.UNKNOWN: f"the head has no such pairing code; {_CURRENT}",
    Refusal.WAIT: "too many tries with a wrong pairing code",
    Refusal.BUSY: "the head pairs with too many machines at once; try again in a few seconds",
    Refusal.BAD_REQUEST: "the head cannot issue a certificate for this machine's name or key; choose another --name, and the same shoal on both",
}


def refused(reason: Refusal, wait: float = 0.0) -> PairingRefused:
    """`wait`: seconds."""
    sentence = _SENTENCES[reason] + (f"; try again in {math.ceil(wait)} s" if wait > 0 else "")
    return PairingRefused(sentence, reason.name.lower(), wait)
