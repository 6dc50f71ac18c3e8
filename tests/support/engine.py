"""An engine without a model, for the gateway: says what it is told to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.errors import InvalidRequest, ShoalError
from shoal.facts import ModelFacts
from shoal.observed.models import UpstreamView
from shoal.observed.trace_span import TraceSpan
from shoal.request import Alternative, FinishReason, Request, Score, TokenChunk
from shoal.text.chat import ChatTemplate
from shoal.text.reasoning import ReasoningFormat
from shoal.text.tools import HERMES, ToolFormat

END = 256
VOCABULARY = 257


class ByteTokenizer:
    """gateway.engine.ChatTokenizer: a token is a byte of UTF-8; one more ends the text. Its template shows tools and calls as JSON, one a line."""

    stop_tokens = frozenset({END})
    special = {"<end>": END}  # noqa: RUF012
    marks = special
    named = {"eos_token": "<end>"}  # noqa: RUF012

    def __init__(
        self, tool_format: ToolFormat | None = None, reasoning_format: ReasoningFormat | None = None, template: str | None = None
    ) -> None:
        """template: a chat template's source, in place of the one that shows all."""
        self.tool_format, self.reasoning_format = tool_format, reasoning_format
        self.template = None if template is None else ChatTemplate(template, {}, "a test's")
        self.encoded = 0
        """Characters that were tokenised."""

    def encode(self, text: str, bos: bool = True, control: bool = True) -> list[int]:
        self.encoded += len(text)
        return list(text.encode())

    def marked(self, text: str) -> str:
        return text

    def encode_marked(self, text: str, bos: bool = False) -> list[int]:
        return self.encode(text, bos)

    def exceeds(self, text: str, limit: int) -> bool:
        return len(text) > 4 * limit

    @property
    def variables(self) -> frozenset[str]:
        return frozenset() if self.template is None else self.template.variables

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        answer: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        if self.template is not None:
            return self.template.render(messages, tools, answer, variables)
        lines = [json.dumps(tool) for tool in tools]
        for message in messages:
            lines += [f"{message['role']}: {message['content']}", *(json.dumps(call) for call in message.get("tool_calls", ()))]
            if message["role"] == "tool":
                lines[-1] += f" ({message['name']}, {message['tool_call_id']})"
        return "".join(line + "\n" for line in lines) + ("" if answer else "(no answer)")

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        return b"".join(bytes([t]) if t < END else b"<end>" * special for t in tokens).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < END else b""

    def text_bytes(self, token: int, first: bool) -> bytes:
        return self.token_bytes(token)


DIMENSIONS = 4


def scored(request: Request) -> list[Item]:
    """What the engine says of a prompt that is to be scored: a token's log-probability is minus its position."""
    top = request.prompt_logprobs or 0
    return [
        TokenChunk(
            request.id,
            0,
            None,
            scores=tuple(
                Score(t, -float(i) if i else None, tuple(Alternative(ord("x") + a, -0.5 - a) for a in range(top)) if i else ())
                for i, t in enumerate(request.prompt)
            ),
        )
    ]


def embedded(request: Request) -> list[Item]:
    """The first tokens, as the embedding."""
    vector = np.array([*request.prompt[:DIMENSIONS], *[0] * DIMENSIONS][:DIMENSIONS], "<f4")
    return [TokenChunk(request.id, 0, None, embedding=vector.tobytes()), TokenChunk(request.id, 0, None, finish=FinishReason.STOP)]


Item = TokenChunk | ShoalError
Script = Callable[[Request], list[Item]]


def spoken(request: Request, text: str, choice: int = 0, finish: FinishReason = FinishReason.STOP) -> list[Item]:
    """A choice that says the text, cut at max_tokens, as the scheduler would."""
    tokens = list(text.encode())
    cut = len(tokens) >= request.max_tokens
    out: list[Item] = []
    for at, token in enumerate(tokens[: request.max_tokens], 1):
        last = cut and at == request.max_tokens
        alternatives = tuple(Alternative((token + i) % END, -0.5 - i) for i in range(request.sampling.logprobs or 0))
        out.append(TokenChunk(request.id, choice, token, -0.5, alternatives, FinishReason.LENGTH if last else None))
    return out if cut else [*out, TokenChunk(request.id, choice, None, finish=finish)]


def says(*texts: str) -> Script:
    """Each choice says the next of the texts, all at once."""

    def script(request: Request) -> list[Item]:
        if request.embed:
            return embedded(request)
        before = scored(request) if request.prompt_logprobs is not None else []
        if not request.max_tokens:
            return [*before, TokenChunk(request.id, 0, None, finish=FinishReason.LENGTH)]
        rows = [spoken(request, texts[c % len(texts)], c) for c in range(request.n)]
        longest = max(map(len, rows))
        return before + [row[i] for i in range(longest) for row in rows if i < len(row)]

    return script


class ScriptedStream:
    """Behaves as pipeline.token_stream.TokenStream does. With `hang` it waits for ever after its items."""

    def __init__(self, request: Request, items: list[Item], hang: bool) -> None:
        self.request, self._items, self._hang = request, list(items), hang
        self._open = request.n
        self.ended: set[int] = set()
        self.closed = False
        self._changed = asyncio.Event()

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> TokenChunk:
        await asyncio.sleep(0)
        while self._items and self._open:
            item = self._items.pop(0)
            if isinstance(item, ShoalError):
                raise item
            if item.choice in self.ended:
                continue
            self._open -= item.finish is not None
            return item
        while self._hang and self._open and not self.closed:
            await self._changed.wait()
            self._changed.clear()
        raise StopAsyncIteration

    def end_choice(self, choice: int) -> None:
        self.ended.add(choice)
        self._open -= 1
        self._changed.set()

    def close(self) -> None:
        self.closed = True
        self._changed.set()


@dataclass
class Resumed:
    """gateway.engine.Resumed: an answer of an engine before."""

    id: str
    note: bytes
    requests: Sequence[Request]
    streams: Sequence[ScriptedStream]
    said: int = 0


class FakeEngine:
    """gateway.engine.Engine."""

    name, identity, created, vocabulary = "fake", "fake 1", 7, VOCABULARY
    facts = ModelFacts("llama", 2, DIMENSIONS, 8, 2, 1, 2, VOCABULARY, 2048, 135_000_000, 98_000_000, "gguf", "Q4_K")

    def __init__(
        self,
        script: Script | None = None,
        *,
        hang: bool = False,
        longest: int = 1000,
        tools: ToolFormat | None = None,
        reasoning: ReasoningFormat | None = None,
        template: str | None = None,
    ) -> None:
        """tools, reasoning: the formats that its template knows. template: its source."""
        self.tokenizer = ByteTokenizer(tools, reasoning, template)
        self.state = ""
        self.refusal: ShoalError | None = None
        self.streams: list[ScriptedStream] = []
        self.ended: list[str] = []
        """Outcomes of answers."""
        self.observed: list[tuple[str, str, int]] = []
        self.reused: list[bool] = []
        """Of requests that may be answered from the response cache: whether they were."""
        self.cache_bytes = self.evicted = 0
        self.first_tokens = 0
        self.asked_elsewhere: list[tuple[str, str, int, int]] = []
        """URL, ending, and tokens of prompt and answer, of requests to upstreams."""
        self.views: list[UpstreamView] = []
        """What was told of upstreams."""
        self.spans: list[TraceSpan] = []
        self.resume = 60.0
        self.kept: dict[str, tuple[bytes, Sequence[Request]]] = {}
        self.before: list[Resumed] = []
        self._script, self._hang, self._longest = script or says("Hello"), hang, longest

    @property
    def asked(self) -> Request:
        """The only request that came."""
        (stream,) = self.streams
        return stream.request

    def longest(self) -> int:
        return self._longest

    def submit(self, request: Request) -> ScriptedStream:
        if self.refusal is not None:
            raise self.refusal
        if request.max_tokens and (tokens := len(request.prompt)) >= self._longest:  # as the scheduler has it
            said = f"the prompt has {tokens} tokens; with one more for an answer at most {self._longest} fit"
            raise InvalidRequest(said, "prompt", "context_length_exceeded")
        stream = ScriptedStream(request, self._script(request), self._hang)
        self.streams.append(stream)
        return stream

    async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> list[ScriptedStream]:
        streams: list[ScriptedStream] = []
        try:
            for request in requests:
                streams.append(self.submit(request))
        except ShoalError:
            for stream in streams:
                stream.close()
            raise
        if note:
            self.kept[answer] = (note, requests)
        await asyncio.sleep(0)
        return streams

    async def find(self, answer: str, owner: str) -> Resumed | None:
        return None

    def forget(self, answer: str) -> None:
        self.kept.pop(answer, None)

    def resumed(self) -> list[Resumed]:
        return self.before

    def traced(self, spans: Sequence[TraceSpan]) -> None:
        self.spans += spans

    def observe_first_token(self, seconds: float) -> None:
        self.first_tokens += 1

    def observe_answer(self, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.ended.append(outcome)

    def observe_request(self, endpoint: str, outcome: str, prompt_tokens: int) -> None:
        self.observed.append((endpoint, outcome, prompt_tokens))

    def observe_reuse(self, hit: bool) -> None:
        self.reused.append(hit)

    def observe_cache(self, taken: int, evicted: int) -> None:
        self.cache_bytes, self.evicted = taken, self.evicted + evicted

    def observe_upstream(self, url: str, ending: str, first: float, whole: float, prompt: int, completion: int) -> None:
        assert 0 <= first <= whole
        self.asked_elsewhere.append((url, ending, prompt, completion))

    def upstream_changed(self, view: UpstreamView) -> None:
        self.views.append(view)

    async def scrape(self) -> bytes:
        return b"shoal_ready 1\n"


def able(script: Script | None = None, format: ToolFormat | None = HERMES, **options: Any) -> FakeEngine:
    """An engine whose template knows tools."""
    return FakeEngine(script, tools=format, **options)


def prompt(engine: FakeEngine) -> str:
    """Of the only request that came."""
    return bytes(engine.asked.prompt).decode()
