"""With --speculation lookup answers are the same, and take fewer steps: over two node processes, also when one is killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.cluster import BOUND, Cluster, served

pytestmark = [pytest.mark.real, pytest.mark.slow]

CODE = Path(__file__).with_name("test_completion.py").read_text()[:1200]
SCHEMA = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"enum": ["Ann Miller", "Bob Miller"]}, "minItems": 4, "maxItems": 6}},
    "required": ["names"],
    "additionalProperties": False,
}
ASKED: list[dict[str, Any]] = [
    {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    {"temperature": 0.8, "seed": 3, "n": 2, "frequency_penalty": 0.1},
    {"temperature": 0.4, "seed": 5, "presence_penalty": 0.2, "stop": ["import pytest"]},
    {"temperature": 0, "response_format": {"type": "json_schema", "json_schema": {"name": "list", "schema": SCHEMA, "strict": True}}},
]
FLAGS = ("--kv-tokens", "8192", "--context", "2048", "--heartbeat", "0.25")


def messages() -> Any:
    return [{"role": "user", "content": f"Repeat this file, word for word:\n{CODE}"}]


def speaks(made: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", timeout=BOUND, max_retries=0)


def answered(made: Cluster) -> list[Any]:
    """What clients get that ask all of it at once, and then one after the other."""

    def ask(fields: dict[str, Any]) -> Any:
        answer = client.chat.completions.create(model="smollm2-135m", messages=messages(), max_tokens=90, **fields)
        assert answer.usage is not None
        return [choice.model_dump() for choice in answer.choices], answer.usage.completion_tokens

    with speaks(made) as client, ThreadPoolExecutor(len(ASKED)) as pool:
        return [*pool.map(ask, ASKED), *map(ask, ASKED)]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    with served(tmp_path_factory.mktemp("without"), 2, *FLAGS) as made:
        said = answered(made)
        assert made.metric("drafted_tokens_total") == 0
    return said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, without: list[Any]) -> Iterator[Cluster]:
    with served(tmp_path_factory.mktemp("with"), 2, "--speculation", "lookup", *FLAGS) as made:
        yield made


def test_answers_are_the_same(made: Cluster, without: list[Any], idle: None) -> None:
    assert answered(made) == without
    drafted, accepted = made.metrics("drafted_tokens_total", "accepted_tokens_total")
    assert drafted >= accepted > 50
    names = json.loads(without[3][0][0]["message"]["content"])["names"]
    assert 4 <= len(names) <= 6


def test_an_answer_goes_on_when_a_node_is_killed(made: Cluster, without: list[Any]) -> None:
    """It is the last test of the cluster: one of its two nodes is gone after it."""
    before = made.metric("accepted_tokens_total")
    said: list[str] = []
    with speaks(made) as client:
        stream = client.chat.completions.create(model="smollm2-135m", messages=messages(), max_tokens=90, temperature=0, stream=True)
        for chunk in stream:
            said.append(chunk.choices[0].delta.content or "" if chunk.choices else "")
            if len(said) == 20:
                made.nodes[1].signal(signal.SIGKILL)
    assert "".join(said) == without[0][0][0]["message"]["content"]
    assert made.total("interruption_seconds_count") >= 1
    assert made.metric("accepted_tokens_total") > before
