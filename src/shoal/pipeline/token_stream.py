"""The tokens of one request, across all the drivers that serve it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from shoal.chunk_stream import ChunkStream
from shoal.request import Request, RequestId, TokenChunk


class TokenSource(Protocol):
    """A source of tokens: a driver."""

    def cancel(self, request: RequestId, choice: int) -> None: ...
    def forget(self, request: RequestId) -> None: ...


class TokenStream(ChunkStream):
    """The tokens of one request as they are sampled; close it to cancel the rest.

    said: what was sampled before this process began. It comes first; the rest follows once a driver takes the request up.
    """

    def __init__(self, request: Request, said: Iterable[TokenChunk] = ()) -> None:
        super().__init__(request)
        self.left: dict[int, list[int]] = {choice: [] for choice in range(request.n)}
        """For each choice that has not ended: the tokens already sampled when this stream began."""
        self._source: TokenSource | None = None
        for chunk in said:
            self.put(chunk)
            if chunk.finish is not None:
                self.left.pop(chunk.choice, None)
            elif chunk.token is not None and chunk.choice in self.left:
                self.left[chunk.choice].append(chunk.token)

    def driven(self, source: TokenSource) -> None:
        """From now on, its tokens come from this source."""
        self._source = source

    def end_choice(self, choice: int) -> None:
        super().end_choice(choice)
        self.left.pop(choice, None)
        if self._source is not None:
            self._source.cancel(self.request.id, choice)

    def close(self) -> None:
        super().close()
        self.left.clear()
        if self._source is not None:
            self._source.forget(self.request.id)
