"""Which answers may be given again, for which requests, and which have to go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from shoal.request import FinishReason, Priority, Request, RequestId, TokenChunk

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[list[TokenChunk]])

EVERYBODY = "*"
"""The scope of all keys together. No key has this id."""


class Question(msgspec.Struct, frozen=True):
    """What an answer depends on, besides the engine: its requests, and what ends its text."""

    requests: tuple[Request, ...]
    stops: tuple[str, ...] = ()
    """Texts that end a choice. The gateway looks for them, so the tokens of a kept answer end where the first one was found."""
    markers: tuple[int, ...] = ()
    """Special tokens that count as text, where those are looked for."""
    seeded: bool = False
    """Whether the client gave the seed."""

    @property
    def repeatable(self) -> bool:
        """Whether asking again must give the same tokens."""
        return all((self.seeded or request.sampling.temperature == 0) and not request.embed for request in self.requests)

    def key(self, engine: str, scope: str) -> bytes:
        """The same for questions that have the same answer, and nothing else. engine: see Engine.identity. scope: whose answers they are."""
        return hashlib.sha256(_encoder.encode((engine, scope, self.stops, self.markers, [_bare(one) for one in self.requests]))).digest()


def _bare(request: Request) -> tuple[Request, list[int], list[tuple[int, float]]]:
    """Without what changes nothing about its tokens, and with what has no order of its own in one."""
    sampling = request.sampling
    bias, ends = sorted(sampling.logit_bias.items()), sorted(request.stop_tokens)
    seed = 0 if sampling.temperature == 0 else sampling.seed
    return (
        msgspec.structs.replace(
            request,
            id=RequestId(""),
            priority=Priority.NORMAL,
            owner="",
            trace=None,
            stop_tokens=frozenset(),
            sampling=msgspec.structs.replace(sampling, seed=seed, logit_bias={}),
        ),
        ends,
        bias,
    )


@dataclass
class Recording:
    """The chunks of one request, as they came."""

    request: Request
    chunks: list[TokenChunk] = field(default_factory=list[TokenChunk])
    _tokens: dict[int, int] = field(default_factory=dict[int, int])
    _ended: set[int] = field(default_factory=set[int])
    _repeatable: bool = True

    def came(self, chunk: TokenChunk) -> None:
        self.chunks.append(chunk)
        if chunk.token is not None:
            self._tokens[chunk.choice] = self._tokens.get(chunk.choice, 0) + 1
        if chunk.degraded:
            self._repeatable = False
        if chunk.finish is not None:
            self._ended.add(chunk.choice)
            short = self._tokens.get(chunk.choice, 0) < self.request.max_tokens
            if chunk.finish is FinishReason.CANCELLED or (chunk.finish is FinishReason.LENGTH and short):
                self._repeatable = False  # there was no room for more: another time there may be

    def ended(self, choice: int) -> None:
        """The reader found its end, a stop string."""
        self._ended.add(choice)

    @property
    def whole(self) -> bool:
        """Whether every choice ended by itself, and would end the same again."""
        return self._repeatable and len(self._ended) == self.request.n


def packed(answer: Iterable[Recording]) -> bytes:
    """The answer to a question: its requests' chunks, in order."""
    return _encoder.encode([[msgspec.structs.replace(chunk, request=RequestId("")) for chunk in one.chunks] for one in answer])


def unpacked(answer: bytes, requests: Sequence[Request]) -> list[list[TokenChunk]]:
    """The chunks of each request. Raises msgspec.MsgspecError."""
    rows = _decoder.decode(answer)
    if len(rows) != len(requests):
        raise msgspec.ValidationError(f"answers to {len(rows)} requests, not {len(requests)}")
    return [
        [msgspec.structs.replace(chunk, request=request.id) for chunk in chunks] for chunks, request in zip(rows, requests, strict=True)
    ]


def surplus(size: int, bound: int, oldest: Iterable[tuple[int, int]]) -> list[int]:
    """Which answers have to go for the others to take at most `bound` bytes.

    size:   bytes of all of them
    oldest: numbers and bytes of the answers, the least recently used first
    """
    gone: list[int] = []
    for number, own in oldest:
        if size <= bound:
            break
        gone.append(number)
        size -= own
    return gone
