"""The metadata of each kind of frame, as msgpack."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from shoal.errors import RemoteProtocolError
from shoal.scheduler.plan import StageTrace, StepPlan, StepResult

EXPERTS = 1 << 30


class Hello(msgspec.Struct, frozen=True):
    """The first frame of each side: its sender, and the link and route that it is for."""

    version: str
    """Version of the package. Both ends must have the same."""
    cluster: str
    node: str
    stage: int
    """The stage that the connecting side feeds; the number of stages if it feeds the head; EXPERTS if it is a stage that asks experts."""


class Step(msgspec.Struct, frozen=True, array_like=True):
    plan: msgspec.Raw
    """A StepPlan as the head encoded it; stages pass it on unchanged."""
    traces: list[StageTrace]
    missing: list[int] = []
    """See StepResult."""
    degraded: dict[int, int] = {}
    """See StepResult."""


class Fetch(msgspec.Struct, frozen=True, array_like=True):
    """Asks for a part of a file. The answer is FETCH frames, each with the offset of its body as its step number."""

    sha256: str
    """Identifies the file by its contents, never by its path."""
    offset: int
    length: int


class Error(msgspec.Struct, frozen=True):
    message: str
    stage: int


_encoder = msgspec.msgpack.Encoder()
_plan = msgspec.msgpack.Decoder(StepPlan)
_step = msgspec.msgpack.Decoder(Step)
_result = msgspec.msgpack.Decoder(StepResult)
_hello = msgspec.msgpack.Decoder(Hello)
_fetch = msgspec.msgpack.Decoder(Fetch)
_error = msgspec.msgpack.Decoder(Error)

M = TypeVar("M")


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


def raw(plan: StepPlan) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(plan))


def _decode(decoder: msgspec.msgpack.Decoder[M], meta: bytes | memoryview) -> M:
    try:
        return decoder.decode(meta)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"metadata that cannot be read: {error}") from error


def decode_step(meta: bytes | memoryview) -> Step:
    return _decode(_step, meta)


def decode_plan(raw: msgspec.Raw) -> StepPlan:
    return _decode(_plan, memoryview(raw))


def decode_result(meta: bytes | memoryview) -> StepResult:
    return _decode(_result, meta)


def decode_hello(meta: bytes | memoryview) -> Hello:
    return _decode(_hello, meta)


def decode_fetch(meta: bytes | memoryview) -> Fetch:
    return _decode(_fetch, meta)


def decode_error(meta: bytes | memoryview) -> Error:
    return _decode(_error, meta)
