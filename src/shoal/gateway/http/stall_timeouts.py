"""How long a client may take for each phase. Pure: the time is an argument.

A client that makes progress is merely slow; one that makes hardly any occupies a connection, its buffers and possibly a slot for nothing.

| phase | the client has to | within |
|---|---|---|
| REQUEST | send a request's line and headers, all of them | 10 s |
| BODY | send at least 10 KiB of the body, or its end | 10 s, again and again |
| READING | read at least 32 KiB of what it is behind with, or all | `--stall`, again and again |
| DRAINING | finish sending a body that was already answered | 5 s |
| AT_EASE | nothing: its answer is being made, or it idles (`--keep-alive` sees to that) | |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Phase(enum.Enum):
    REQUEST = enum.auto()
    BODY = enum.auto()
    READING = enum.auto()
    DRAINING = enum.auto()
    AT_EASE = enum.auto()


@dataclass(frozen=True)
class StallRule:
    seconds: float
    least: int | None = None
    """Bytes that restart the time limit; None: nothing does."""


def rules(stall: float) -> dict[Phase, StallRule]:
    return {
        Phase.REQUEST: StallRule(10),
        Phase.BODY: StallRule(10, 10 << 10),
        Phase.READING: StallRule(stall, 32 << 10),
        Phase.DRAINING: StallRule(5),
    }


class StallTimeouts:
    """The timeouts of one connection."""

    def __init__(self, now: float, rules: dict[Phase, StallRule]) -> None:
        self._rules = rules
        self._doing: object = None
        self._since, self._moved = now, 0

    def overdue(self, now: float, phase: Phase, turn: object, moved: int) -> bool:
        """Call it from time to time.

        turn: changes with each request, and whenever the client has caught up
        moved: bytes that the client has moved so far in its phase; may count from any origin
        """
        rule = self._rules.get(phase)
        if self._doing != (phase, turn):
            self._doing = (phase, turn)
        elif rule is None or rule.least is None or moved - self._moved < rule.least:
            return rule is not None and now - self._since >= rule.seconds
        self._since, self._moved = now, moved
        return False
