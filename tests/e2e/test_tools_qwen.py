"""Tools on a model that was trained to call them, whose marker of a call is a token of its own: the catalogue's, over two nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionFunctionToolParam

from shoal.models.sources import pull
from tests.support.cluster import Cluster, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

MODEL = "qwen2.5-coder-1.5b"
WAIT = 900.0  # seconds; a model of this size on a machine with other work
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
SUM = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
FUNCTIONS = [
    {"name": "get_weather", "description": "The weather in a city, now.", "parameters": CITY},
    {"name": "add", "description": "The sum of two numbers.", "parameters": SUM},
]
TOOLS: list[Any] = [{"type": "function", "function": function} for function in FUNCTIONS]
PARIS: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pull(MODEL)
    with cluster(tmp_path_factory.mktemp("qwen")) as made:
        made.up("--nodes", "2", "--discovery", "none", "--model", MODEL, "--context", "2048", "--heartbeat", "5")
        until(lambda: made.answers("/health/ready"), made.story, WAIT)
        yield made


@pytest.fixture(scope="module")
def client(made: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", timeout=WAIT, max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, messages: list[Any], **fields: Any) -> ChatCompletion:
    fields = {"max_tokens": 120, **fields}
    return client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, temperature=0, **fields)


def streamed(client: openai.OpenAI, messages: list[Any], **fields: Any) -> ChatCompletion:
    with client.chat.completions.stream(model=MODEL, messages=messages, tools=TOOLS, temperature=0, max_tokens=120, **fields) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def called(answer: ChatCompletion) -> list[tuple[str, Any]]:
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls", choice
    return [
        (call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or [] if call.type == "function"
    ]


@pytest.fixture(scope="module")
def answer(client: openai.OpenAI) -> ChatCompletion:
    """Of a model that may choose, and calls."""
    return ask(client, PARIS, parallel_tool_calls=False)


def test_the_model_calls(answer: ChatCompletion) -> None:
    assert called(answer) == [("get_weather", {"city": "Paris"})]
    assert not answer.choices[0].message.content


@pytest.mark.parametrize("choice", ["auto", {"type": "function", "function": {"name": "get_weather"}}])
def test_it_calls_in_a_stream(client: openai.OpenAI, choice: Any) -> None:
    answer = streamed(client, PARIS, tool_choice=choice, parallel_tool_calls=False)
    assert called(answer) == [("get_weather", {"city": "Paris"})]
    assert not answer.choices[0].message.content


def test_it_calls_by_the_token_of_the_marker(client: openai.OpenAI) -> None:
    answer = ask(client, PARIS, tool_choice="required", parallel_tool_calls=False, logprobs=True)
    assert called(answer) == [("get_weather", {"city": "Paris"})]
    assert not answer.choices[0].message.content
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content
    assert (logprobs.content[0].token, logprobs.content[-1].token) == ("<tool_call>", "</tool_call>")


def test_parallel_calls(client: openai.OpenAI) -> None:
    """A model of this size does not stop at those that it was asked for."""
    talk: list[Any] = [{"role": "user", "content": "What is the weather in Paris and in Rome?"}]
    calls = ask(client, talk, tool_choice="required", max_tokens=60).choices[0].message.tool_calls or []
    cities = [call.function.arguments for call in calls if call.type == "function" and call.function.name == "get_weather"]
    assert [json.loads(city) for city in cities[:2]] == [{"city": "Paris"}, {"city": "Rome"}]
    assert len({call.id for call in calls}) == len(calls)


def test_a_result_is_read_and_answered_in_text(client: openai.OpenAI, answer: ChatCompletion) -> None:
    message = answer.choices[0].message
    (call,) = message.tool_calls or []
    talk: list[Any] = [*PARIS, message, {"role": "tool", "tool_call_id": call.id, "content": "22 degrees, sunny"}]
    choice = ask(client, talk, tool_choice="none").choices[0]
    assert choice.finish_reason == "stop" and "22" in (choice.message.content or "")


def test_without_need_there_is_text(client: openai.OpenAI) -> None:
    choice = ask(client, [{"role": "user", "content": "Say hello."}]).choices[0]
    assert choice.finish_reason == "stop" and choice.message.content and not choice.message.tool_calls


def test_one_tool_with_what_cannot_be_held_to_refuses_no_request(client: openai.OpenAI) -> None:
    odd = {"to": {"type": "string", "pattern": r"^(?=.{1,64}@)[^@\s]+@[^@\s]+$"}, "n": {"type": "number", "maximum": 1e30}}
    schema: dict[str, object] = {"type": "object", "properties": odd, "required": ["to"]}
    mail: ChatCompletionFunctionToolParam = {"type": "function", "function": {"name": "mail", "parameters": schema}}
    answer = client.chat.completions.create(model=MODEL, messages=PARIS, tools=[TOOLS[0], mail], temperature=0, max_tokens=120)
    assert called(answer) == [("get_weather", {"city": "Paris"})]


def test_responses(client: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "strict": False, **function} for function in FUNCTIONS]
    common: dict[str, Any] = {"model": MODEL, "tools": tools, "temperature": 0, "max_output_tokens": 120, "parallel_tool_calls": False}
    first = client.responses.create(input="What is the weather in Paris?", tool_choice="auto", **common)
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    with client.responses.stream(input="What is the weather in Paris?", tool_choice="required", **common) as stream:
        for _ in stream:
            pass
        (again,) = stream.get_final_response().output
    assert again.type == "function_call" and (again.name, json.loads(again.arguments)) == (call.name, json.loads(call.arguments))
    result: list[Any] = [{"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees, sunny"}]
    second = client.responses.create(input=result, previous_response_id=first.id, tool_choice="none", **common)
    assert "22" in second.output_text


def test_a_file_of_four_to_six_bits_takes_hardly_more_memory_than_itself(made: Cluster) -> None:
    """Q4_K_M: its Q4_K at 5 bits instead of 4.5, its Q6_K at its own; without the embedding, of which rows are read from the file."""
    shown = made.start("nodes", "--head", f"127.0.0.1:{made.control_port}", "--json")
    assert shown.wait() == 0, shown.describe()
    listed = json.JSONDecoder().raw_decode(shown.said, shown.said.index("{\n"))[0]  # beside what gRPC logs
    held, file = sum(node["weight_bytes"] for node in listed["nodes"]), pull(MODEL).stat().st_size
    assert 0.9 * file < held < 0.97 * file
