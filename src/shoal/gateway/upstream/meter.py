"""What another server's answer costs, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from shoal.gateway.upstream.event_stream import StreamEvent
from shoal.serving.balancing.text_pieces import TOKEN

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "message_stop", "error"})
"""Types of the events that end a stream of /v1/responses or /v1/messages."""


def _part(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = of.get(name)
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    """The sum of those that are there."""
    found = [value for name in names if type(value := usage.get(name)) is int and value >= 0]
    return sum(found) if found else None


class Meter:
    """Tokens as the server counts them. Where it does not: a prompt has a token for every four bytes, an answer one for each event of
    its stream, or for every four bytes. Of a stream that did not come to its end, the events count where they are more than was told:
    some servers begin with a number of tokens that grows."""

    def __init__(self, prompt_bytes: int, choices: int = 1) -> None:
        """choices: that were asked for."""
        self._prompt: int | None = None
        self._completion: int | None = None
        self._likely, self._events = prompt_bytes // TOKEN, 0
        self.done = False
        """Whether the stream has said that it is at its end."""
        self._final = False
        """Whether the number of tokens is the last one."""
        self._choices, self._unfinished, self._finished = choices, set[int](), set[int]()
        """Of the choices, by their index."""
        self.failed = False
        """Whether it has said that the answer failed."""
        self.last: Mapping[str, Any] = {}
        """The latest event of those that are numbered."""
        self.response: Mapping[str, Any] = {}
        """The response of /v1/responses as it was told last."""

    @property
    def prompt(self) -> int:
        return self._likely if self._prompt is None else self._prompt

    @property
    def completion(self) -> int:
        if self._completion is None:
            return self._events
        return self._completion if self._final or self._all_finished else max(self._completion, self._events)

    @property
    def whole(self) -> bool:
        """Whether it may end here. Some servers say no more than why each choice has ended."""
        return self.done or self.failed or self._all_finished

    @property
    def _all_finished(self) -> bool:
        return len(self._finished) >= self._choices and not self._unfinished

    def event(self, event: StreamEvent) -> bool:
        """Takes an event into account. Whether it is one with the usage and nothing else."""
        data = event.data
        if data is None:
            self.done = self.done or event.done
            self._final = self._final or event.done
            return False
        kind = data.get("type")
        if "sequence_number" in data:
            self.last = data
        if response := _part(data, "response"):
            self.response = response
        told = self._read(data)
        if isinstance(kind, str) and kind in _ENDS:
            self.done = True
            self._final = kind != "error"
        if kind in ("error", "response.failed") or data.get("error"):
            self.failed = True
        choices = data.get("choices")
        if isinstance(choices, list):
            if not choices:
                return told
            for each in cast("list[Any]", choices):
                if isinstance(each, dict):
                    self._choice(cast("Mapping[str, Any]", each))
        self._events += kind != "ping"
        return False

    def _choice(self, choice: Mapping[str, Any]) -> None:
        index = choice.get("index")
        index = index if type(index) is int else 0
        if choice.get("finish_reason"):
            self._finished.add(index)
            self._unfinished.discard(index)
        elif index not in self._finished:
            self._unfinished.add(index)

    def answer(self, body: Mapping[str, Any], size: int) -> None:
        """An answer that came at once, of so many bytes."""
        self._read(body)
        if self._completion is None:
            self._completion = 0 if body.get("object") == "list" else size // TOKEN

    def _read(self, body: Mapping[str, Any]) -> bool:
        """Whether there is a usage in it."""
        found = False
        for holder in (body, _part(body, "response"), _part(body, "message")):
            usage = _part(holder, "usage")
            if not usage:
                continue
            found = True
            prompt = _count(usage, "prompt_tokens")
            if prompt is None:
                prompt = _count(usage, "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
            completion = _count(usage, "completion_tokens")
            if completion is None:
                completion = _count(usage, "output_tokens")
            self._prompt = self._prompt if prompt is None else prompt
            self._completion = self._completion if completion is None else completion
            if prompt is not None and completion is None and "total_tokens" in usage:
                self._completion = 0  # of embeddings
        return found
