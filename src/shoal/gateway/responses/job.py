"""From a request for a response to the engine's, and what its answer needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from shoal.errors import InvalidRequest, UnknownAnswer
from shoal.gateway.caller import CALLER
from shoal.gateway.conversation import Conversation, converse
from shoal.gateway.engine import Engine
from shoal.gateway.job import Job, common, new_id
from shoal.gateway.responses.items import input_items, messages, responses_of
from shoal.gateway.responses.store import Kept, ResponseStore
from shoal.gateway.responses.wire import ResponseRequest
from shoal.gateway.responses.writer import ResponseWriter
from shoal.request import MAX_ALTERNATIVES

_LOGPROBS = "message.output_text.logprobs"


class ResponseJob(Job, frozen=True, tag="response"):
    asked: dict[str, Any]
    """What the response says about how it was asked."""
    logprobs: bool = False
    input: tuple[dict[str, Any], ...] = ()
    """The items that are kept with it."""

    def writer(self, engine: Engine) -> ResponseWriter:
        return ResponseWriter(engine, self)

    @property
    def store(self) -> bool:
        """Whether it is kept."""
        return bool(self.asked["store"])

    @property
    def note(self) -> bytes:
        """Without the input, which is kept already."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, requests=(), input=()))


def check_include(include: Sequence[str] | None) -> None:
    """Raises InvalidRequest for what no response has."""
    for name in include or ():
        if name != _LOGPROBS:
            raise InvalidRequest(f"'{name}' cannot be included; {_LOGPROBS} can", "include", "unsupported_parameter")


def _check(body: ResponseRequest) -> None:
    if body.truncation == "auto":
        raise InvalidRequest("truncation 'auto' is not supported: shorten the input, or begin a new conversation", "truncation")
    if any(len(key) > 64 for key in body.metadata or {}):
        raise InvalidRequest("a key of metadata has at most 64 characters", "metadata")
    check_include(body.include)
    if not 0 <= (body.top_logprobs or 0) <= MAX_ALTERNATIVES:
        raise InvalidRequest(f"top_logprobs must lie in [0, {MAX_ALTERNATIVES}], not {body.top_logprobs}", "top_logprobs")
    if body.top_logprobs and not body.include:
        raise InvalidRequest(f"top_logprobs needs include to name {_LOGPROBS}", "top_logprobs")


def _before(body: ResponseRequest, store: ResponseStore, owner: str) -> list[Kept]:
    """The conversation that this one goes on from."""
    if body.previous_response_id is None:
        return []
    chain = store.chain(body.previous_response_id, owner)
    if (status := chain[-1].response["status"]) not in ("completed", "incomplete"):
        message = f"the previous response '{body.previous_response_id}' is {status.replace('_', ' ')}: nothing can follow it"
        raise InvalidRequest(message, "previous_response_id")
    return chain


def _referred(id: str, store: ResponseStore, owner: str) -> dict[str, Any]:
    """An output item of a response that was kept."""
    for response in responses_of(id):
        try:
            output: list[dict[str, Any]] = store.get(response, owner).response["output"]
        except UnknownAnswer:
            continue
        for item in output:
            if item["id"] == id:
                return item
    raise InvalidRequest(f"there is no item '{id}' here, or no longer; send the item itself", "input")


def _asked(body: ResponseRequest, keep: bool) -> dict[str, Any]:
    """What a response says about how it was asked."""
    format = {"type": "text"} if body.text is None or body.text.format is None else body.text.format.model_dump(by_alias=True)
    choice = body.tool_choice
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "store": keep,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {key: value for key, value in format.items() if value is not None}, "verbosity": "medium"},
        "tool_choice": choice or "auto" if choice is None or isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _converse(body: ResponseRequest, engine: Engine, items: Sequence[dict[str, Any]]) -> Conversation:
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    try:
        return converse(engine, [*system, *messages(items)], body.asked_tools(), body.answer())
    except InvalidRequest as error:
        if (error.param or "").startswith("messages"):  # what other endpoints call it
            raise InvalidRequest(str(error), "input", error.code) from None
        raise


def response_job(body: ResponseRequest, engine: Engine, chosen: str | None, store: ResponseStore) -> ResponseJob:
    """chosen: the response's id. Raises InvalidRequest, NotReady, CapacityError."""
    _check(body)
    owner, id = CALLER.get().id, chosen or new_id("resp_")
    keep = store.keeps and body.store is not False
    before = [item for kept in _before(body, store, owner) for item in (*kept.input, *kept.response["output"])]
    given = input_items(body.input, id, lambda item: _referred(item, store, owner))
    asked = _converse(body, engine, [*before, *given])
    fields = common(
        body,
        engine,
        [asked.prompt],
        prefix="resp_",
        max_tokens=body.max_output_tokens,
        limited_by="max_output_tokens",
        logprobs=(body.top_logprobs or 0) if body.include else None,
        chosen=id,
        grammar=asked.grammar,
    )
    fields["named"] = chosen is not None
    return ResponseJob(
        **fields,
        asked=_asked(body, keep),
        logprobs=bool(body.include),
        format=asked.format,
        markers=asked.markers,
        input=tuple(given) if keep else (),
    )
