"""From a messages request to the engine's requests and the data for its answer."""

from __future__ import annotations

from typing import ClassVar

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import blamed, converse, rendered
from shoal.gateway.answers.job import MANY_STOPS, Job, common
from shoal.gateway.endpoints.messages.turns import templated
from shoal.gateway.endpoints.messages.wire import CountRequest, MessagesRequest
from shoal.gateway.endpoints.messages.writer import MessageWriter
from shoal.gateway.engine import Engine
from shoal.gateway.schema.sampling import fitting
from shoal.gateway.schema.variables import template_variables


class MessageJob(Job, frozen=True, tag="message"):
    shortened: bool = False
    """Whether the context ends before max_tokens."""

    ping: ClassVar[bytes] = b'event: ping\ndata: {"type": "ping"}\n\n'
    """What a stream sends after some time without news."""

    def writer(self, engine: Engine) -> MessageWriter:
        return MessageWriter(engine, self)


def message_job(body: MessagesRequest, engine: Engine, chosen: str | None = None) -> MessageJob:
    """chosen: the answer's id. Raises InvalidRequest, NotReady."""
    variables = template_variables(engine.tokenizer, body.asked_effort(), None)
    talk = templated(body.system_text(), body.messages)
    with blamed("messages"):
        asked = converse(engine, talk, body.asked_tools(), body.answer(), variables)
    fits = fitting(body.max_tokens, len(asked.prompt), engine.longest())
    try:
        fields = common(
            body.sampled(),
            engine,
            [asked.prompt],
            prefix="msg_",
            max_tokens=fits,
            logprobs=None,
            chosen=chosen,
            grammar=asked.grammar,
            most_stops=MANY_STOPS,
        )
    except InvalidRequest as error:
        if error.param == "stop":  # OpenAI's name for it
            raise InvalidRequest(str(error), "stop_sequences") from None
        raise
    return MessageJob(**fields, format=asked.format, markers=asked.markers, shortened=fits < body.max_tokens)


def count(body: CountRequest, engine: Engine) -> int:
    """Tokens of the prompt, whether or not it fits. Raises InvalidRequest."""
    variables = template_variables(engine.tokenizer, body.asked_effort(), None)
    talk = templated(body.system_text(), body.messages)
    with blamed("messages"):
        text = rendered(engine.tokenizer, talk, body.asked_tools(), variables=variables)
    return len(engine.tokenizer.encode_marked(text))
