"""The head's record of its requests: encodes records to bytes, and rebuilds unfinished answers from bytes. No I/O.

    file:    record, record, …                     the first one is `Began`
    record:  length u32 · crc32 u32 · payload      little-endian; the payload is msgpack

    Began           whose requests these are: another model's tokens mean nothing here
    Accepted        an answer: its requests, and a note that only the gateway reads
    SampledTokens   the tokens of one step
    Gone            an answer that nobody will ask for any more

A file may end anywhere, because its writer may be killed at any time: whatever follows the last whole record is cut off. So
every prefix of a file is a state that once existed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from shoal.request import Alternative, FinishReason, Request, RequestId, TokenChunk

VERSION = 1
_HEADER = struct.Struct("<II")


class Began(msgspec.Struct, frozen=True, array_like=True, tag="began"):
    identity: str
    version: int = VERSION


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="accepted"):
    answer: str
    first: int
    """Number of its first request; the others follow. Numbers are short, and never reused within a file."""
    note: bytes
    requests: list[Request]


class SampledToken(msgspec.Struct, frozen=True, array_like=True):
    """A TokenChunk; its request is given by number."""

    number: int
    choice: int
    token: int | None
    logprob: float | None
    alternatives: tuple[Alternative, ...]
    finish: FinishReason | None
    cached: int
    degraded: int = 0

    @classmethod
    def of(cls, number: int, chunk: TokenChunk) -> SampledToken:
        return cls(number, chunk.choice, chunk.token, chunk.logprob, chunk.alternatives, chunk.finish, chunk.cached, chunk.degraded)

    def chunk(self, request: RequestId) -> TokenChunk:
        return TokenChunk(
            request, self.choice, self.token, self.logprob, self.alternatives, self.finish, self.cached, degraded=self.degraded
        )


class SampledTokens(msgspec.Struct, frozen=True, array_like=True, tag="drawn"):
    samples: list[SampledToken]


class Gone(msgspec.Struct, frozen=True, array_like=True, tag="gone"):
    answer: str


Record = Began | Accepted | SampledTokens | Gone

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode(record: Record) -> bytes:
    payload = _encoder.encode(record)
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def decode(data: bytes) -> Iterator[tuple[Record, int]]:
    """The whole records, each with the offset where it ends; stops at the first that is torn or invalid."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, check = _HEADER.unpack_from(data, at)
        end = at + _HEADER.size + length
        payload = data[at + _HEADER.size : end]
        if end > len(data) or zlib.crc32(payload) != check:
            return
        try:
            record = _decoder.decode(payload)
        except msgspec.MsgspecError:
            return
        yield record, end
        at = end


@dataclass
class KeptAnswer:
    """An answer that was unfinished, or had just ended."""

    answer: str
    first: int
    note: bytes
    requests: list[Request]
    said: list[list[TokenChunk]] = field(default_factory=list[list[TokenChunk]])
    """The chunks of each request, in the order in which they were sampled."""


class Ledger:
    """The state that the records read so far add up to."""

    def __init__(self) -> None:
        self.identity: str | None = None
        self.answers: dict[str, KeptAnswer] = {}
        self._numbers: dict[int, tuple[KeptAnswer, int]] = {}

    def add(self, record: Record) -> None:
        match record:
            case Began(identity, version):
                self.identity = identity if version == VERSION else ""
            case Accepted(answer, first, note, requests):
                self._forget(answer)
                self.answers[answer] = kept = KeptAnswer(answer, first, note, requests, [[] for _ in requests])
                self._numbers |= {first + i: (kept, i) for i in range(len(requests))}
            case SampledTokens(samples):
                for sample in samples:
                    if (found := self._numbers.get(sample.number)) is not None:
                        kept, i = found
                        kept.said[i].append(sample.chunk(kept.requests[i].id))
            case Gone(answer):
                self._forget(answer)

    def _forget(self, answer: str) -> None:
        if (kept := self.answers.pop(answer, None)) is not None:
            for i in range(len(kept.requests)):
                self._numbers.pop(kept.first + i, None)


def read(data: bytes) -> tuple[Ledger, int]:
    """The state in a file, and how many of its bytes are whole records."""
    ledger, end = Ledger(), 0
    for record, end in decode(data):  # noqa: B007 - the last end is needed
        ledger.add(record)
    return ledger, end


def written(identity: str, answers: Iterable[KeptAnswer]) -> bytes:
    """A file that holds only these answers and keeps their numbers."""
    out = [encode(Began(identity))]
    for kept in answers:
        out.append(encode(Accepted(kept.answer, kept.first, kept.note, kept.requests)))
        samples = [SampledToken.of(kept.first + i, chunk) for i, said in enumerate(kept.said) for chunk in said]
        if samples:
            out.append(encode(SampledTokens(samples)))
    return b"".join(out)
