"""Who has a lease, as keepers that store bytes store it."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True):
    """owner: one process of a head, as it names itself; '': nobody."""

    owner: str
    address: str
    term: int
