"""What one client sends, others do not notice: hostile requests beside a stream, over HTTP to a real cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.cluster import BOUND, Cluster, served

pytestmark = [pytest.mark.real, pytest.mark.slow]

QUEUE = 24
STORY = {"prompt": "A very long story about the sea:", "max_tokens": 120, "temperature": 1, "seed": 5, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Its layers stay where they are, however busy the machine is: a new epoch is then one that a request caused."""
    with served(tmp_path_factory.mktemp("two"), 2, "--slots", "8", "--queue", str(QUEUE), "--pace", "0") as made:
        yield made


class Story(Thread):
    """A stream; it is read to its end."""

    def __init__(self, made: Cluster) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.begun = Event()
        self._made = made

    def run(self) -> None:
        with (
            httpx.Client(base_url=self._made.url, timeout=BOUND, trust_env=False) as client,
            client.stream("POST", "/v1/completions", json=STORY) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self.pieces += [choice["text"] for choice in json.loads(line[6:])["choices"]]
                    self.begun.set()

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def story(made: Cluster) -> Story:
    begun = Story(made)
    begun.start()
    assert begun.begun.wait(BOUND)
    return begun


@pytest.fixture(scope="module")
def alone(two: Cluster) -> str:
    """What the stream says when nothing else runs."""
    said = story(two)
    said.join()
    return said.text


@contextmanager
def undisturbed(made: Cluster, alone: str) -> Iterator[None]:
    """A stream that runs meanwhile says what it says alone, on the same route, and nobody is left out."""
    epoch, beside = made.metric("epoch"), story(made)
    yield
    beside.join()
    assert beside.text == alone
    assert made.metric("epoch") == epoch
    assert made.metric("nodes") == 2
    assert "stage failed" not in made.story() and "a step failed" not in made.story()
    made.until_idle()


EXTREMES: list[dict[str, Any]] = [
    *({"repetition_penalty": value} for value in (5e-324, 1e-300, 1e-45, 10)),
    *({"temperature": value} for value in (5e-324, 1e-40, 1e-5, 5)),
    *({"top_p": value, "temperature": 1} for value in (5e-324, 1e-300, 1)),
    *({"min_p": value, "temperature": 1} for value in (5e-324, 1)),
    {"top_k": 2**31, "temperature": 1},
    {"presence_penalty": -2, "frequency_penalty": 2},
    {"logit_bias": {str(token): -100 for token in range(1000)}},
    {"logit_bias": {"0": 100, "5": 5e-324}, "logprobs": 5},
    {"seed": 2**63 - 1, "temperature": 5, "repetition_penalty": 1e-300, "logprobs": 5, "top_k": 2},
    {"repetition_penalty": 1e-300, "logprobs": 5, "best_of": 4, "n": 2, "temperature": 1},
]


def test_parameters_at_the_edges_of_their_ranges_are_served(two: Cluster, alone: str) -> None:
    with undisturbed(two, alone), ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda fields: two.complete("Once upon", 4, ignore_eos=True, **fields), EXTREMES):
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] in (4, 16), answer.text


def test_what_no_queue_can_admit_is_the_requests_fault(two: Cluster) -> None:
    for prompts, best_of in ((2, 16), (QUEUE + 1, 1), (3, 9)):
        answer = two.complete(["a"] * prompts, 1, best_of=best_of)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt"), answer.text
        assert f"{prompts * best_of} sequences" in answer.json()["error"]["message"]
    assert two.complete(["a"] * QUEUE, 1).status_code == 200


def test_a_token_that_the_model_does_not_have_is_the_requests_fault(two: Cluster, alone: str) -> None:
    with undisturbed(two, alone):
        for prompt in ([1, 2, 49152], [-1], [[1], [2**31]], [2**63]):
            answer = two.complete(prompt, 1)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt"), answer.text
        for token in ("49152", "-1", "1e3", "٣٠٠٠٠٠"):
            answer = two.complete("a", 1, logit_bias={token: 1})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logit_bias"), answer.text


def ask(made: Cluster, path: str, body: bytes) -> tuple[int, int]:
    """The status, and how many tokens there were."""
    with httpx.Client(base_url=made.url, timeout=4 * BOUND, trust_env=False) as client:
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        return answer.status_code, answer.json().get("count", 0)


def test_costly_texts_and_bodies_do_not_hold_the_head_up(two: Cluster, alone: str) -> None:
    """The head answers others while they are worked on, and refuses what would take longer."""
    spaces = json.dumps({"prompt": " " * 520_000}).encode()
    hostile = [
        *[("/tokenize", spaces)] * 8,
        ("/tokenize", json.dumps({"prompt": "a " * 2_000_000}).encode()),
        ("/tokenize", b'{"prompt": "a", "x": [' + b"[]," * 1_300_000 + b"1]}"),
        ("/v1/completions", b'{"max_tokens": 1, "prompt": [' + b"1.5," * 1_000_000 + b"1]}"),
        ("/v1/chat/completions", b'{"messages": [' + b"1," * 2_000_000 + b"1]}"),
        ("/v1/completions", json.dumps({"prompt": " a" * 2_000_000}).encode()),
    ]
    with undisturbed(two, alone), ThreadPoolExecutor(len(hostile)) as pool:
        asked = [pool.submit(ask, two, path, body) for path, body in hostile]
        beside = 0
        while not all(each.done() for each in asked):
            assert two.http.get("/health").status_code == 200
            assert two.http.post("/tokenize", json={"prompt": "a b"}).json()["count"] == 2
            beside += 1
        answers = [each.result() for each in asked]
    assert answers[:8] == [(200, 8125)] * 8
    assert answers[8:] == [(400, 0)] * 5
    assert beside >= len(hostile)


def held_to(schema: dict[str, Any], tokens: int = 12, **fields: Any) -> bytes:
    format = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps({"messages": messages, "max_tokens": tokens, "response_format": format, **fields}).encode()


def test_costly_grammars_do_not_hold_a_stage_up(two: Cluster, alone: str) -> None:
    """They are worked on in a process of the last node's, which is gone with it."""
    patterns = [{"type": "string", "pattern": f"[a-z]*x{i}(foo|bar)*[0-9]{{50}}"} for i in range(300)]
    hostile = [held_to({"anyOf": patterns[n:] + patterns[:n]}) for n in range(8)]
    hostile.append(held_to({"type": "string", "maxLength": 1_000_000}, n=8))
    with undisturbed(two, alone), ThreadPoolExecutor(len(hostile)) as pool:
        answers = list(pool.map(lambda body: ask(two, "/v1/chat/completions", body)[0], hostile))
    assert set(answers) <= {200, 400}
    assert answers[-1] == 200
    workers = [p for node in two.nodes for p in node.family()[1:] if "shoal.node.grammar_worker" in p.cmdline()]
    assert len(workers) == 1
