"""Tools and structured output as the openai SDK has them, against two nodes and a model of trained weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from pydantic import BaseModel

from tests.support.cluster import MODEL, Cluster, cluster, until
from tests.support.tools_template import SOURCE

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("idle")]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": parameters}}


TOOLS = [
    tool("weather", city={"type": "string", "maxLength": 20}, unit={"enum": ["C", "F"]}),
    tool("add", a={"type": "integer", "minimum": 0, "maximum": 99}, b={"type": "integer", "minimum": 0, "maximum": 99}),
]
PARAMETERS = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}
ADD = {"type": "function", "function": {"name": "add"}}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}


def turn(number: int, city: str) -> list[dict[str, Any]]:
    call = {"id": f"c{number}", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city, "unit": "C"})}}
    return [
        {"role": "user", "content": f"What is the weather in {city}?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"c{number}", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]


TALK = [*turn(0, "Paris"), *turn(1, "Berlin"), *turn(2, "Madrid"), {"role": "user", "content": "What is the weather in Rome?"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "tools.jinja").write_text(SOURCE)
    with cluster(folder) as made:
        made.serve("--min-nodes", "2", "--spread", "--chat-template", str(folder / "tools.jinja"))
        for name in ("a", "b"):
            made.join("--name", name)
        made.until_ready()
        yield made


def ask(client: openai.OpenAI, messages: list[Any] = TALK, **fields: Any) -> ChatCompletion:
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 150, **fields}
    return client.chat.completions.create(**body)


def streamed(client: openai.OpenAI, messages: list[Any] = TALK, **fields: Any) -> ChatCompletion:
    """As the SDK puts it together."""
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 150, **fields}
    with client.chat.completions.stream(**body) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def calls(message: ChatCompletionMessage) -> list[tuple[str, str]]:
    """Those that keep to their schemas: all, or the test fails."""
    made = [(call.function.name, call.function.arguments) for call in message.tool_calls or [] if call.type == "function"]
    for name, arguments in made:
        jsonschema.validate(json.loads(arguments), PARAMETERS[name])
    return made


@pytest.mark.parametrize(("choice", "temperature"), [("auto", 0), ("required", 0), ("required", 1)])
def test_a_call_keeps_to_its_schema_whole_and_streamed(client: openai.OpenAI, choice: str, temperature: int) -> None:
    fields = {"tools": TOOLS, "tool_choice": choice, "temperature": temperature, "seed": 5}
    whole, stream = ask(client, **fields).choices[0], streamed(client, **fields).choices[0]
    assert (whole.finish_reason, stream.finish_reason) == ("tool_calls", "tool_calls")
    assert calls(whole.message) == calls(stream.message) != []


def test_the_model_calls_what_it_is_asked_for(client: openai.OpenAI) -> None:
    ((name, arguments),) = calls(ask(client, tools=TOOLS).choices[0].message)
    assert (name, json.loads(arguments)["city"]) == ("weather", "Rome")


@pytest.mark.parametrize("read", [ask, streamed])
def test_a_function_that_is_named_is_called_once(client: openai.OpenAI, read: Any) -> None:
    choice = read(client, tools=TOOLS, tool_choice=ADD).choices[0]
    assert [name for name, _ in calls(choice.message)] == ["add"]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)


def test_without_need_there_is_text(client: openai.OpenAI) -> None:
    choice = ask(client, [{"role": "user", "content": "Hello, who are you?"}], tools=TOOLS, max_tokens=12).choices[0]
    assert choice.message.content and not choice.message.tool_calls
    assert choice.finish_reason == "length"


def test_with_the_choice_none_there_are_no_calls(client: openai.OpenAI) -> None:
    assert not ask(client, tools=TOOLS, tool_choice="none", max_tokens=20).choices[0].message.tool_calls


def test_a_conversation_goes_on_with_the_result(client: openai.OpenAI) -> None:
    message = ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0].message
    (call,) = message.tool_calls or []
    talk = [*TALK, message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert "sunny" in (ask(client, talk, tools=TOOLS, tool_choice="none", max_tokens=8).choices[0].message.content or "")


def test_every_choice_calls(client: openai.OpenAI) -> None:
    choices = ask(client, tools=TOOLS, tool_choice="required", n=3, temperature=1.5, seed=1, parallel_tool_calls=False).choices
    assert [len(calls(choice.message)) for choice in choices] == [1, 1, 1]
    assert len({call.id for choice in choices for call in choice.message.tool_calls or []}) == 3


def test_a_call_that_is_cut_says_length(client: openai.OpenAI) -> None:
    choice = ask(client, tools=TOOLS, tool_choice=ADD, max_tokens=20).choices[0]
    (call,) = choice.message.tool_calls or []
    assert choice.finish_reason == "length"
    assert call.type == "function" and not call.function.arguments.endswith("}")


def test_the_sdk_notices_that_a_streamed_call_was_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        streamed(client, tools=TOOLS, tool_choice=ADD, max_tokens=20)


@pytest.mark.parametrize(("read", "seed"), [(ask, 0), (ask, 1), (streamed, 2)])
def test_an_answer_keeps_to_its_schema(client: openai.OpenAI, read: Any, seed: int) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    talk = [{"role": "user", "content": "Anna is 30 and likes red. Write her as JSON."}]
    choice = read(client, talk, response_format=schema, temperature=1, seed=seed).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), PERSON)


class Person(BaseModel):
    name: str
    age: int


def test_the_sdk_parses_an_answer_into_a_model(client: openai.OpenAI) -> None:
    talk: list[Any] = [{"role": "user", "content": "Anna is 30."}]
    parsed = client.chat.completions.parse(model=MODEL, messages=talk, response_format=Person, temperature=0, max_tokens=100)
    assert isinstance(parsed.choices[0].message.parsed, Person)


def test_an_answer_that_is_cut_is_the_beginning_of_json(client: openai.OpenAI) -> None:
    choice = ask(client, response_format={"type": "json_object"}, max_tokens=4).choices[0]
    assert choice.finish_reason == "length"
    assert (choice.message.content or "").startswith("{")


def test_an_answer_read_again_has_the_same_calls(made: Cluster, client: openai.OpenAI) -> None:
    body = {"messages": TALK, "tools": TOOLS, "tool_choice": "required", "temperature": 0, "max_tokens": 100, "stream": True}
    first = made.http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "again"}).text
    again = made.http.get("/v1/streams/again").text
    assert '"id":"call_' in first
    assert again == first


def test_a_call_goes_on_when_a_node_is_lost(made: Cluster) -> None:
    """The last test: one node is left after it."""
    long = tool("write", text={"type": "string", "minLength": 150, "maxLength": 200})
    body = {"messages": TALK, "tools": [long], "tool_choice": "required", "temperature": 0, "max_tokens": 300}
    whole = made.http.post("/v1/chat/completions", json=body).json()["choices"][0]
    with made.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        arguments, choice = "", dict[str, Any]()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                had = bool(arguments)
                arguments += "".join(call["function"]["arguments"] for call in choice["delta"].get("tool_calls", ()))
                if arguments and not had:
                    made.nodes[1].popen.kill()
    assert arguments == whole["message"]["tool_calls"][0]["function"]["arguments"]
    assert choice["finish_reason"] == whole["finish_reason"] == "tool_calls"
    until(lambda: made.metric("nodes") == 1)
