"""What heads ask a witness, as JSON over gRPC."""

from __future__ import annotations

from typing import Annotated

import msgspec

SERVICE = "shoal.Witness"
MOST_BYTES = 4096
"""Of a request."""
PORT = 7430

Name = Annotated[str, msgspec.Meta(pattern=r"^[ -~]{1,128}\Z")]
Term = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=3600)]


class Acquire(msgspec.Struct, frozen=True):
    """floor: the last term that the head knows of. duration: seconds."""

    cluster: Name
    owner: Name
    address: Name
    floor: Term
    duration: Seconds


class Renew(msgspec.Struct, frozen=True):
    cluster: Name
    owner: Name
    term: Term
    duration: Seconds


class Release(msgspec.Struct, frozen=True):
    cluster: Name
    owner: Name
    term: Term


class Inquire(msgspec.Struct, frozen=True):
    cluster: Name


class State(msgspec.Struct, frozen=True):
    """Every answer. granted: whether the witness did what it was asked. term: the last. address: of the head that leads; '': none does."""

    granted: bool
    term: int
    address: str = ""


METHODS: dict[str, type[Acquire] | type[Renew] | type[Release] | type[Inquire]] = {
    "Acquire": Acquire,
    "Renew": Renew,
    "Release": Release,
    "Inquire": Inquire,
}
