"""Clients that people bring, unchanged, against a model that is split over two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import tools_template
from tests.support.cluster import MODEL, served

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionFunctionToolParam

pytestmark = [pytest.mark.real, pytest.mark.slow]

HERE = Path(__file__).parent / "clients"
ASKED: list[Any] = [{"role": "user", "content": "Name a city in France."}]
CITY: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city", "parameters": CITY},
}
HIDDEN = 576
"""Values of SmolLM2's hidden states."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("clients")
    template = folder / "tools.jinja"  # SmolLM2's own knows no tools
    template.write_text(tools_template.SOURCE)
    with served(folder, 2, "--chat-template", str(template), "--ping", "0.01") as cluster:  # comments between most tokens
        yield f"{cluster.url}/v1"


@pytest.fixture(scope="module")
def plain(url: str) -> str:
    """What all of them are to get."""
    import httpx2 as httpx

    body = {"messages": ASKED, "max_tokens": 12, "temperature": 0}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60, trust_env=False)
    return answer.json()["choices"][0]["message"]["content"]


@pytest.fixture(scope="session")
def node_clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts and the packages that they use."""
    folder = tmp_path_factory.mktemp("node")
    for file in HERE.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    command = [str(Path(sys.executable).parent / "npm"), "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(command, cwd=folder, check=True, env=_with_node())
    return folder


def _with_node() -> dict[str, str]:
    """Node.js comes with the development requirements."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(folder: Path, script: str, url: str) -> dict[str, Any]:
    command = [str(Path(sys.executable).parent / "node"), script, url, MODEL]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=_with_node())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_city(arguments: Any) -> bool:
    return isinstance(arguments, dict) and set(arguments) == {"city"} and isinstance(arguments["city"], str)


def test_the_openai_package_for_node(url: str, plain: str, node_clients: Path) -> None:
    got = run(node_clients, "openai_sdk.mjs", url)
    assert (got["whole"]["message"]["content"], got["whole"]["finish_reason"]) == (plain, "length")
    assert got["stream"]["text"] == plain
    assert got["stream"]["usage"]["completion_tokens"] == 12
    for choice in (got["tool"], got["streamedTool"]):
        (call,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        assert call["function"]["name"] == "get_weather" and is_city(json.loads(call["function"]["arguments"]))
    assert got["tool"]["message"]["tool_calls"][0]["function"] == got["streamedTool"]["message"]["tool_calls"][0]["function"]
    shaped = json.loads(got["shaped"])
    assert set(shaped) == {"city", "size"} and shaped["size"] in ("small", "large")
    assert got["response"] == plain
    assert got["embeddings"] == [HIDDEN, HIDDEN]
    assert got["error"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}


def test_the_ai_sdk(url: str, plain: str, node_clients: Path) -> None:
    got = run(node_clients, "ai_sdk.mjs", url)
    assert (got["whole"]["text"], got["whole"]["finish"], got["whole"]["usage"]["outputTokens"]) == (plain, "length", 12)
    assert got["stream"] == plain
    assert got["tool"]["finish"] == "tool-calls"
    for calls in (got["tool"]["calls"], got["streamedTool"]):
        assert [call["name"] for call in calls] == ["get_weather"] and is_city(calls[0]["input"])
    assert is_city(got["shaped"])
    assert got["embeddings"] == [HIDDEN, HIDDEN]
    assert got["error"]["status"] == 404 and "nobody" in got["error"]["message"]


def test_the_openai_package_for_python(url: str, plain: str) -> None:
    import openai

    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=12, temperature=0)
        assert whole.choices[0].message.content == plain and whole.usage is not None and whole.usage.completion_tokens == 12
        stream = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=12, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == plain
        called = client.chat.completions.create(
            model=MODEL,
            messages=ASKED,
            max_tokens=60,
            temperature=0,
            tools=[WEATHER],
            tool_choice="required",
        )
        (call,) = called.choices[0].message.tool_calls or []
        assert call.type == "function" and is_city(json.loads(call.function.arguments))
        completion = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, temperature=0, logprobs=2, echo=True)
        assert completion.choices[0].text.startswith("One, two,") and completion.choices[0].logprobs is not None
        vectors = client.embeddings.create(model=MODEL, input=["one", "two"]).data  # asks for base64 by itself
        assert [len(v.embedding) for v in vectors] == [HIDDEN, HIDDEN]
        assert sum(x * x for x in vectors[0].embedding) == pytest.approx(1, abs=1e-3)
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="nobody", messages=ASKED)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(model=MODEL, messages=ASKED, n=0)
        assert wrong.value.param == "n"


def test_the_anthropic_package_for_python(url: str, plain: str) -> None:
    import anthropic

    greedy = {"temperature": 0}  # which the package knows no longer
    tool: Any = {"name": "get_weather", "description": "The weather of a city", "input_schema": CITY}
    with anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="none", max_retries=0) as client:
        whole = client.messages.create(model=MODEL, messages=ASKED, max_tokens=12, extra_body=greedy)
        assert [block.text for block in whole.content if block.type == "text"] == [plain]
        assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 12)
        with client.messages.stream(model=MODEL, messages=ASKED, max_tokens=12, extra_body=greedy) as stream:
            assert "".join(stream.text_stream) == plain
            ended = stream.get_final_message()
        assert ended.usage == whole.usage
        long: Any = {"model": MODEL, "messages": ASKED, "max_tokens": 1, "system": "Answer in one word. " * 20}
        first, again = client.messages.create(**long).usage, client.messages.create(**long).usage
        assert first.cache_read_input_tokens == 0 < (again.cache_read_input_tokens or 0)
        assert again.input_tokens + (again.cache_read_input_tokens or 0) == first.input_tokens
        counted = client.messages.count_tokens(model=MODEL, messages=ASKED)
        assert counted.input_tokens == whole.usage.input_tokens
        for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
            with client.messages.stream(
                model=MODEL,
                messages=ASKED,
                max_tokens=60,
                extra_body=greedy,
                tools=[tool],
                tool_choice=choice,  # pyright: ignore[reportArgumentType]
            ) as stream:
                called = stream.get_final_message()
            (call, *_) = called.content
            assert call.type == "tool_use" and is_city(call.input) and called.stop_reason == "tool_use"
        back: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "It rains."}]}
        turns: Any = [*ASKED, called.to_param(), {"role": "user", "content": [back]}]
        none = client.messages.create(
            model=MODEL, messages=turns, max_tokens=12, extra_body=greedy, tools=[tool], tool_choice={"type": "none"}
        )
        assert [block.type for block in none.content] == ["text"]
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="claude-sonnet", messages=ASKED, max_tokens=5)


def test_the_ollama_package_for_python(url: str, plain: str) -> None:
    import ollama

    with closing(ollama.Client(host=url.removesuffix("/v1"), trust_env=False)) as client:
        name = client.list().models[0].model or ""
        options = {"temperature": 0, "num_predict": 12}
        whole = client.chat(name, ASKED, options=options)
        assert (whole.message.content, whole.done_reason, whole.eval_count, whole.model) == (plain, "length", 12, name)
        assert 0 < (whole.prompt_eval_duration or 0) < (whole.total_duration or 0)
        assert "".join(part.message.content or "" for part in client.chat(name, ASKED, options=options, stream=True)) == plain
        shaped = client.chat(name, ASKED, options={"temperature": 0, "num_predict": 60}, format=CITY)
        assert is_city(json.loads(shaped.message.content or ""))
        first = client.generate(name, "Name a city in France.", options=options)
        assert first.response == plain and first.context
        again = client.generate(name, "And another.", options=options, context=first.context)
        assert again.context and list(again.context[: len(first.context)]) == list(first.context)
        assert [len(vector) for vector in client.embed(name, ["one", "two"]).embeddings] == [HIDDEN, HIDDEN]
        shown = client.show(name)
        assert shown.modelinfo is not None and shown.modelinfo["llama.embedding_length"] == HIDDEN
        assert shown.details is not None and shown.details.parameter_size == "134.48M"
        with pytest.raises(ollama.ResponseError, match="are not pulled"):
            client.pull("llama3")


def test_langchain(url: str, plain: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from pydantic import BaseModel, Field, SecretStr

    class City(BaseModel):
        """A city."""

        city: str = Field(max_length=12)

    key = SecretStr("none")
    model = ChatOpenAI(base_url=url, api_key=key, model=MODEL, temperature=0, max_completion_tokens=12, max_retries=0)
    assert model.invoke("Name a city in France.").content == plain
    assert "".join(str(part.content) for part in model.stream("Name a city in France.")) == plain
    longer = ChatOpenAI(base_url=url, api_key=key, model=MODEL, temperature=0, max_completion_tokens=60, max_retries=0)
    question = HumanMessage("Name a city in France.")
    asked = longer.bind_tools([dict(WEATHER)], tool_choice="required").invoke([question])
    (call,) = asked.tool_calls
    assert call["name"] == "get_weather" and is_city(call["args"])
    answered = model.bind_tools([dict(WEATHER)], tool_choice="none").invoke(
        [question, asked, ToolMessage("It rains.", tool_call_id=call["id"])]
    )
    assert answered.content and not answered.tool_calls
    assert isinstance(longer.with_structured_output(City, method="json_schema").invoke("Name a city in France."), City)
    embeddings = OpenAIEmbeddings(base_url=url, api_key=key, model=MODEL, check_embedding_ctx_length=False, max_retries=0)
    assert [len(v) for v in embeddings.embed_documents(["one", "two"])] == [HIDDEN, HIDDEN]


def test_litellm(url: str, plain: str) -> None:
    """In a process of its own: it changes warnings, loggers and event loops of the one it is imported into."""
    script = """
import json, sys, litellm
url, model, asked, weather = sys.argv[1], "openai/" + sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
to = dict(model=model, api_base=url, api_key="none", messages=asked, temperature=0, num_retries=0)
out = {"whole": litellm.completion(max_tokens=12, **to).choices[0].message.content}
out["stream"] = "".join(c.choices[0].delta.content or "" for c in litellm.completion(max_tokens=12, stream=True, **to))
out["tool"] = litellm.completion(max_tokens=60, tools=[weather], tool_choice="required", **to).choices[0].message.tool_calls[0].function.arguments
out["shaped"] = litellm.completion(max_tokens=60, response_format={"type": "json_object"}, **to).choices[0].message.content
out["vectors"] = [len(v["embedding"]) for v in litellm.embedding(model=model, api_base=url, api_key="none", input=["one", "two"]).data]
try:
    litellm.completion(**{**to, "model": "openai/nobody"})
except litellm.NotFoundError as error:
    out["error"] = error.status_code
print(json.dumps(out))
"""
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [sys.executable, "-c", script, url, MODEL, json.dumps(ASKED), json.dumps(WEATHER)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert (got["whole"], got["stream"]) == (plain, plain)
    assert is_city(json.loads(got["tool"]))
    assert isinstance(json.loads(got["shaped"]), dict)
    assert got["vectors"] == [HIDDEN, HIDDEN]
    assert got["error"] == 404
