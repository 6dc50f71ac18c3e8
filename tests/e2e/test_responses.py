"""Responses as the openai SDK has them, and chat over a WebSocket, against two nodes and a model of trained weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseCompletedEvent, ResponseFunctionToolCall, ResponseIncompleteEvent
from pydantic import BaseModel
from websockets.sync.client import connect

from tests.support.cluster import BOUND, MODEL, Cluster, cluster
from tests.support.tools_template import SOURCE

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("idle")]

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"type": "function", "name": "weather", "description": "Weather of a city", "parameters": PARAMETERS, "strict": True}]


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("responses")
    (folder / "tools.jinja").write_text(SOURCE)
    with cluster(folder) as made:
        data = ("--data", str(folder / "data"), "--chat-template", str(folder / "tools.jinja"))
        made.up("--nodes", "2", "--discovery", "none", *data)
        made.until_ready()
        yield made


def create(client: openai.OpenAI, input: Any, **fields: Any) -> Response:
    body = {"model": MODEL, "input": input, "temperature": 0, "max_output_tokens": 30, **fields}
    return client.responses.create(**body)


def streamed(client: openai.OpenAI, input: Any, **fields: Any) -> Response:
    """As the SDK puts it together."""
    body = {"model": MODEL, "input": input, "temperature": 0, "max_output_tokens": 30, **fields}
    with client.responses.stream(**body) as stream:
        events = list(stream)
    return ended(events[-1], "".join(event.delta for event in events if event.type == "response.output_text.delta"))


def ended(event: object, said: str) -> Response:
    """What a stream's last event holds: a response that says what was streamed."""
    assert isinstance(event, ResponseCompletedEvent | ResponseIncompleteEvent)
    assert event.response.output_text == said
    return event.response


def test_whole_and_streamed_say_the_same_as_chat(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    chat = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_completion_tokens=30)
    whole, stream = create(client, messages), streamed(client, messages[0]["content"])
    assert whole.output_text == stream.output_text == chat.choices[0].message.content
    assert whole.usage and chat.usage and whole.usage.total_tokens == chat.usage.total_tokens
    assert whole.status == ("completed" if chat.choices[0].finish_reason == "stop" else "incomplete")


def test_a_conversation_goes_on_from_what_was_kept(client: openai.OpenAI) -> None:
    first = create(client, "My name is Anna. Say hello.", instructions="Be brief.")
    second = streamed(client, "What is my name?", previous_response_id=first.id)
    said: list[Any] = [
        {"role": "user", "content": "My name is Anna. Say hello."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"},
    ]
    assert second.output_text == create(client, said, store=False).output_text
    third = create(client, "Thanks.", previous_response_id=second.id)
    assert third.usage and second.usage and third.usage.input_tokens > second.usage.input_tokens


def test_responses_are_retrieved_listed_and_deleted(client: openai.OpenAI) -> None:
    made = create(client, "Hi", metadata={"topic": "greeting"}, include=["message.output_text.logprobs"], top_logprobs=2)
    assert client.responses.retrieve(made.id) == made
    assert made.output[0].type == "message" and made.output[0].content[0].type == "output_text"
    assert len(made.output[0].content[0].logprobs or []) >= 1
    (item,) = client.responses.input_items.list(made.id).data
    assert item.type == "message" and item.content[0].type == "input_text" and item.content[0].text == "Hi"
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as gone:
        create(client, "And?", previous_response_id=made.id)
    assert (gone.value.code, gone.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_stream_is_taken_up_again_where_it_was(client: openai.OpenAI) -> None:
    name = {"X-Request-Id": "taken-up-again"}
    events: list[Any] = []
    with client.responses.create(model=MODEL, input="A story, please", max_output_tokens=60, stream=True, extra_headers=name) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 12:
                break
    rest = list(client.responses.retrieve("taken-up-again", stream=True, starting_after=events[-1].sequence_number))
    assert [event.sequence_number for event in [*events, *rest]] == list(range(len(events) + len(rest)))
    ended(rest[-1], "".join(event.delta for event in [*events, *rest] if event.type == "response.output_text.delta"))


@pytest.mark.parametrize("read", [create, streamed])
def test_a_call_and_its_result_make_a_conversation(client: openai.OpenAI, read: Any) -> None:
    asked = read(
        client, "What is the weather in Rome?", tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_output_tokens=100
    )
    (call,) = asked.output
    assert isinstance(call, ResponseFunctionToolCall) and call.name == "weather"
    assert set(json.loads(call.arguments)) == {"city"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 24 degrees"}
    fields = {"tools": TOOLS, "tool_choice": "none"}
    kept = read(client, [result], previous_response_id=asked.id, **fields)
    sent: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}, call, result]
    assert kept.output_text == create(client, sent, **fields).output_text != ""


def test_the_sdk_parses_an_answer_into_a_model(client: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "text_format": Person, "temperature": 0, "max_output_tokens": 100}
    assert isinstance(client.responses.parse(input="Anna is 30.", **fields).output_parsed, Person)


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    assert model.model_dump()["max_model_len"] > 1000


def test_text_becomes_tokens_and_back(made: Cluster) -> None:
    text = "<|im_start|>user\nZwölf Boxkämpfer 🥊<|im_end|>\n"
    told = made.http.post("/tokenize", json={"prompt": text}).json()
    assert made.http.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": text}
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    count = made.http.post("/tokenize", json=chat).json()["count"]
    answer = made.http.post("/v1/chat/completions", json={**chat, "max_tokens": 1}).json()
    assert count == answer["usage"]["prompt_tokens"]


def test_chat_over_a_websocket_says_what_it_says_over_http(made: Cluster) -> None:
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0, "max_tokens": 20}
    said = made.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    with connect(f"{made.url.replace('http', 'ws')}/v1/chat/completions", proxy=None) as socket:
        for id in "ab":
            socket.send(json.dumps({**body, "id": id}))
        messages: list[Any] = []
        while sum(m.get("type") == "done" for m in messages) < 2:
            messages.append(json.loads(socket.recv(BOUND)))
        socket.send(json.dumps({**body, "max_tokens": 400, "ignore_eos": True}))
        socket.recv(BOUND)
    for id in "ab":
        assert said == "".join(c["delta"].get("content") or "" for m in messages if m["id"] == id for c in m.get("choices", ()))
