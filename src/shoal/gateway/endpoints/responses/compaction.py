"""POST /v1/responses/compact: turns a long conversation into the user's messages and a summary of everything else, which the
model writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import Tools, blamed, converse
from shoal.gateway.answers.job import Job, common
from shoal.gateway.answers.reading import Reading
from shoal.gateway.answers.writer import Event, Piece, Usage
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.endpoints.responses.items import compaction, input_items, item_id, messages
from shoal.gateway.endpoints.responses.job import conversation_before, referred
from shoal.gateway.endpoints.responses.store import Turns
from shoal.gateway.endpoints.responses.wire import CompactRequest
from shoal.gateway.endpoints.responses.writer import usage_of
from shoal.gateway.engine import Engine
from shoal.gateway.http.faults import Fault
from shoal.gateway.http.request_id import new_id
from shoal.gateway.schema.sampling import fitting
from shoal.gateway.schema.variables import template_variables
from shoal.text.deltas import ContentDelta

_MOST = 2048
"""Most tokens of a summary."""
_ASKED = (
    "Sum up this conversation for somebody who is to carry it on without having read it: what was asked for, what is known and decided, "
    "what was done with which results, and what remains to be done. Keep names, numbers, paths and identifiers exactly. Write the summary only."
)


class CompactionJob(Job, frozen=True, tag="compaction"):
    said: tuple[dict[str, Any], ...] = ()
    """The user's messages."""

    def writer(self, engine: Engine) -> CompactionWriter:
        return CompactionWriter(self)


class CompactionWriter:
    """A gateway.writer.Writer. As events it gives the whole answer at once, for a client that comes back for it."""

    def __init__(self, job: CompactionJob) -> None:
        self._job, self._text = job, ""
        self._reading = Reading(job.format, 1)

    def opening(self) -> Sequence[Event]:
        return ()

    def piece(self, piece: Piece) -> Sequence[Event]:
        self._text += "".join(delta.text for delta in self._reading.deltas(piece) if isinstance(delta, ContentDelta))
        return ()

    def ending(self, usage: Usage) -> Sequence[Event]:
        return [Event(self._compacted(usage))]

    def failed(self, what: Fault) -> Sequence[Event]:
        return [Event(what.body)]

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        for piece in pieces:
            self.piece(piece)
        return self._compacted(usage)

    def _compacted(self, usage: Usage) -> dict[str, Any]:
        item = compaction(item_id("cmp", self._job.id, len(self._job.said)), self._text.strip())
        about = {"id": self._job.id, "object": "response.compaction", "created_at": self._job.created}
        return {**about, "output": [*self._job.said, item], "usage": usage_of(self._reading.usage(usage))}


def compaction_job(body: CompactRequest, engine: Engine, chosen: str | None, store: Turns) -> CompactionJob:
    """chosen: the compaction's id. Raises InvalidRequest, NotReady, CapacityError."""
    owner, id = CALLER.get().id, chosen or new_id("resp_")
    given = [] if body.input is None else input_items(body.input, id, lambda item: referred(item, store, owner))
    items = [*conversation_before(body.previous_response_id, store, owner), *given]
    if not items:
        raise InvalidRequest("there is nothing to summarise: give input or previous_response_id", "input")
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    talk = [*system, *_told(messages(items)), {"role": "user", "content": _ASKED}]
    with blamed("input"):
        asked = converse(engine, talk, Tools(()), None, template_variables(engine.tokenizer, "none", None))
    most = fitting(_MOST, len(asked.prompt), engine.longest())
    fields = common(body, engine, [asked.prompt], prefix="resp_", max_tokens=most, logprobs=None, chosen=id)
    fields["named"] = chosen is not None
    said = [item for item in items if item["type"] == "message" and item["role"] == "user"]
    kept = tuple({**item, "id": item_id("in", id, at)} for at, item in enumerate(said))
    return CompactionJob(**fields, format=asked.format, markers=asked.markers, said=kept)


def _told(talk: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Writes calls and their results as text, so that any model can read them, even one without tools."""
    out: list[dict[str, Any]] = []
    for message in talk:
        calls = [f"I called {call['function']['name']} with {call['function']['arguments']}." for call in message.get("tool_calls", ())]
        if message["role"] == "tool":
            out.append({"role": "user", "content": f"The result: {message['content']}"})
        else:
            said = [message["content"]] if message["content"] else []
            out.append({"role": message["role"], "content": "\n".join([*said, *calls])})
    return out
