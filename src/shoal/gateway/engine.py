"""What the gateway needs from whatever runs a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from shoal.facts import ModelFacts
from shoal.gateway.auth.key import KeyId
from shoal.request import Request, TokenChunk
from shoal.text.chat import ChatTemplate
from shoal.text.detokenizer import Decoder
from shoal.text.reasoning import ReasoningFormat
from shoal.text.tools import ToolFormat


class TakenOver(Exception):
    """Another reader has come: nobody is left to read this for."""


class Stream(Protocol):
    def __aiter__(self) -> Stream: ...
    async def __anext__(self) -> TokenChunk: ...
    def end_choice(self, choice: int) -> None: ...
    def close(self) -> None: ...


class Resumed(Protocol):
    """An answer that began in another process, or before the engine restarted. Its streams repeat all of it, then continue."""

    @property
    def id(self) -> str: ...
    @property
    def note(self) -> bytes: ...
    @property
    def requests(self) -> Sequence[Request]: ...
    @property
    def streams(self) -> Sequence[Stream]: ...
    @property
    def said(self) -> int:
        """Tokens that were sent to a reader before, and so are already counted for the key."""
        ...


class ChatTokenizer(Decoder, Protocol):
    """The part of shoal.text.tokenizer.Tokenizer that the gateway uses; see there."""

    @property
    def stop_tokens(self) -> frozenset[int]: ...
    @property
    def special(self) -> Mapping[str, int]: ...
    @property
    def marks(self) -> Mapping[str, int]: ...
    @property
    def named(self) -> Mapping[str, str]: ...
    @property
    def template(self) -> ChatTemplate | None: ...
    @property
    def tool_format(self) -> ToolFormat | None: ...
    @property
    def reasoning_format(self) -> ReasoningFormat | None: ...
    @property
    def variables(self) -> frozenset[str]: ...
    def encode(self, text: str, bos: bool = True, control: bool = True) -> list[int]: ...
    def marked(self, text: str) -> str: ...
    def encode_marked(self, text: str, bos: bool = False) -> list[int]: ...
    def exceeds(self, text: str, limit: int) -> bool: ...
    def decode(self, tokens: Sequence[int], special: bool = False) -> str: ...
    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        answer: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str: ...


class Engine(Protocol):
    """One model. What concerns all models of a server is in gateway.engines."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str:
        """What its answers depend on besides the requests: the model's files, the numbers that it computes with, and its version."""
        ...

    @property
    def created(self) -> int: ...
    @property
    def facts(self) -> ModelFacts: ...
    @property
    def tokenizer(self) -> ChatTokenizer: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def state(self) -> str:
        """'' while the model is served; otherwise why it is not."""
        ...

    def longest(self) -> int:
        """Tokens of the longest sequence that can run. Raises NotReady."""
        ...

    async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> Sequence[Stream]:
        """Submits all requests of an answer, or none of them.

        If the engine supports it, the answer outlives the engine: this returns when that is ensured.

        note: what is needed to write the answer, besides the tokens; empty: it ends with this gateway and this engine
        named: whether a client may come back for it, even after the asking process is gone

        Raises NotReady, InvalidRequest, QueueFull, IdTaken.
        """
        ...

    @property
    def resume(self) -> float:
        """Seconds for which an answer waits for a client that may come back for it."""
        ...

    def forget(self, answer: str) -> None:
        """Nobody will come back for it. Must follow every `begin`."""
        ...

    def resumed(self) -> Sequence[Resumed]:
        """The answers that outlived the previous engine; asked once."""
        ...

    async def find(self, answer: str, owner: KeyId) -> Resumed | None:
        """An answer that another gateway of this engine began for that key. From now on it belongs to this one; at the other
        gateway its streams raise TakenOver."""
        ...

    def observe_first_token(self, seconds: float) -> None: ...
    def observe_answer(self, outcome: str, seconds: float) -> None:
        """An answer ended: 'complete', 'failed' or 'left' by its client. seconds: since it was accepted, or taken up."""
        ...

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        """A request for this model was accepted, or refused with the status `outcome`."""
        ...

    def observe_reuse(self, hit: bool) -> None:
        """A request that may be answered from the response cache was, or was not."""
        ...
