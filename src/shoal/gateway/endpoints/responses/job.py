"""From a responses request to the engine's requests and the data for its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from shoal.errors import InvalidRequest, UnknownAnswer
from shoal.gateway.answers.conversation import Conversation, Tools, blamed, converse
from shoal.gateway.answers.job import Job, common
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.endpoints.responses.items import input_items, messages, responses_of
from shoal.gateway.endpoints.responses.store import Turns
from shoal.gateway.endpoints.responses.wire import ReasoningConfig, ResponseRequest
from shoal.gateway.endpoints.responses.writer import ResponseWriter
from shoal.gateway.engine import Engine
from shoal.gateway.http.request_id import new_id
from shoal.gateway.schema.variables import template_variables
from shoal.request import MAX_ALTERNATIVES

_LOGPROBS, _ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"


class ResponseJob(Job, frozen=True, tag="response"):
    asked: dict[str, Any]
    """The parameters of the request that the response repeats."""
    logprobs: bool = False
    custom: tuple[str, ...] = ()
    """Tools that are called with text."""
    input: tuple[dict[str, Any], ...] = ()
    """The items of its input."""

    def writer(self, engine: Engine) -> ResponseWriter:
        return ResponseWriter(engine, self)

    @property
    def store(self) -> bool:
        """Whether the response is stored."""
        return bool(self.asked["store"])

    @property
    def note(self) -> bytes:
        """Without the input, which is already stored, or need not be."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, requests=(), input=()))


def check_include(include: Sequence[str] | None) -> None:
    """Raises InvalidRequest for values that no response has."""
    for name in include or ():
        if name not in (_LOGPROBS, _ENCRYPTED):  # nothing is encrypted: reasoning is sent in the clear
            raise InvalidRequest(f"'{name}' cannot be included; {_LOGPROBS} can", "include", "unsupported_parameter")


def _scored(body: ResponseRequest) -> bool:
    return _LOGPROBS in (body.include or ())


def _check(body: ResponseRequest) -> None:
    if body.truncation == "auto":
        raise InvalidRequest("truncation 'auto' is not supported: shorten the input, or begin a new conversation", "truncation")
    check_include(body.include)
    if not 0 <= (body.top_logprobs or 0) <= MAX_ALTERNATIVES:
        raise InvalidRequest(f"top_logprobs must lie in [0, {MAX_ALTERNATIVES}], not {body.top_logprobs}", "top_logprobs")
    if body.top_logprobs and not _scored(body):
        raise InvalidRequest(f"top_logprobs needs include to name {_LOGPROBS}", "top_logprobs")


def conversation_before(previous: str | None, store: Turns, owner: str) -> list[dict[str, Any]]:
    """The items of the conversation up to and including a response. Raises InvalidRequest, CapacityError."""
    if previous is None:
        return []
    chain = store.chain(previous, owner)
    if (status := chain[-1].response["status"]) not in ("completed", "incomplete"):
        message = f"the previous response '{previous}' is {status.replace('_', ' ')}: nothing can follow it"
        raise InvalidRequest(message, "previous_response_id")
    return [item for kept in chain for item in (*kept.input, *kept.response["output"])]


def referred(id: str, store: Turns, owner: str) -> dict[str, Any]:
    """An output item of a stored response."""
    for response in responses_of(id):
        try:
            output: list[dict[str, Any]] = store.get(response, owner).response["output"]
        except UnknownAnswer:
            continue
        for item in output:
            if item["id"] == id:
                return item
    raise InvalidRequest(f"there is no item '{id}', or it is no longer kept; send the item itself", "input")


def _asked(body: ResponseRequest, keep: bool) -> dict[str, Any]:
    """The parameters of the request that the response repeats."""
    format = {"type": "text"} if body.text is None or body.text.format is None else body.text.format.model_dump(by_alias=True)
    choice, reasoning = body.tool_choice, body.reasoning or ReasoningConfig()
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "frequency_penalty": body.frequency_penalty or 0.0,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "presence_penalty": body.presence_penalty or 0.0,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
        "safety_identifier": body.safety_identifier,
        "store": keep,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {key: value for key, value in format.items() if value is not None}, "verbosity": "medium"},
        "tool_choice": choice or "auto" if choice is None or isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump(exclude_none=tool.type == "custom") for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        **({} if body.user is None else {"user": body.user}),
    }


def _converse(body: ResponseRequest, engine: Engine, items: Sequence[dict[str, Any]], tools: Tools) -> Conversation:
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    variables = template_variables(engine.tokenizer, body.reasoning and body.reasoning.effort, body.chat_template_kwargs)
    with blamed("input"):
        return converse(engine, [*system, *messages(items)], tools, body.answer(), variables)


def response_job(body: ResponseRequest, engine: Engine, chosen: str | None, store: Turns) -> ResponseJob:
    """chosen: the response's id. Raises InvalidRequest, NotReady, CapacityError."""
    _check(body)
    owner, id = CALLER.get().id, chosen or new_id("resp_")
    keep = store.keeps and body.store is not False
    before = conversation_before(body.previous_response_id, store, owner)
    given = input_items(body.input, id, lambda item: referred(item, store, owner))
    tools = body.asked_tools()
    asked = _converse(body, engine, [*before, *given], tools)
    fields = common(
        body,
        engine,
        [asked.prompt],
        prefix="resp_",
        max_tokens=body.max_output_tokens,
        limited_by="max_output_tokens",
        logprobs=(body.top_logprobs or 0) if _scored(body) else None,
        chosen=id,
        grammar=asked.grammar,
    )
    fields["named"] = chosen is not None
    return ResponseJob(
        **fields,
        asked=_asked(body, keep),
        logprobs=_scored(body),
        format=asked.format,
        custom=tools.custom,
        markers=asked.markers,
        input=tuple(given),
    )
