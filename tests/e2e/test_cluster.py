"""Real processes, real sockets, trained weights: what a client sees, and what becomes of the processes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from shoal.control.client import describe
from tests.support.cluster import Cluster, Process, cluster, free_port, gone, served, until
from tests.support.stories import lines_of, open_story, reset

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPTS = ["The capital of France is", "1, 2, 3,", "def add(a, b):\n", "In the year 1969, " * 12, "Ein Satz über"]
TOKENS = 16


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that stay whole."""
    with served(tmp_path_factory.mktemp("two"), 2, "--slots", "8", "--queue", "16") as made:
        yield made


@pytest.fixture(autouse=True)
def whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test on the shared cluster nothing is held, and it answers."""
    yield
    if "two" in request.fixturenames:
        made: Cluster = request.getfixturevalue("two")
        made.until_idle()
        assert made.texts("Hi", 1)


def deltas(answer: httpx.Response) -> str:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])


def chat(made: Cluster, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Tell me about Paris."}], "max_tokens": TOKENS, "temperature": 0, **fields}
    answer = made.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


# Answers


def test_chat_keeps_to_its_subject(two: Cluster) -> None:
    assert "Paris" in chat(two).json()["choices"][0]["message"]["content"]


def test_stream_is_the_answer_in_pieces(two: Cluster) -> None:
    assert deltas(chat(two, stream=True)) == chat(two).json()["choices"][0]["message"]["content"]


def test_stop_string_cuts_where_the_whole_text_has_it(two: Cluster) -> None:
    text = two.texts("1, 2, 3,", 24)[0]
    stop = text[6:10]
    assert two.texts("1, 2, 3,", 24, stop=stop) == [text[: text.index(stop)]]


def test_the_same_seed_draws_the_same_whatever_runs_beside_it(two: Cluster) -> None:
    alone = two.texts(PROMPTS[0], temperature=1, seed=11)
    client = open_story(two, stream=True, n=3)
    until(lambda: two.metric("sequences_running") >= 3)
    beside = two.texts(PROMPTS[0], temperature=1, seed=11)
    reset(client)
    assert beside == alone


def test_choices_of_one_seed_differ_and_repeat(two: Cluster) -> None:
    first, second = (two.texts(PROMPTS[0], temperature=1, seed=3, n=4) for _ in range(2))
    assert first == second
    assert len(set(first)) > 1


def test_log_probabilities_are_those_of_the_greedy_draw(two: Cluster) -> None:
    content = chat(two, logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]["content"]
    assert all(t["top_logprobs"][0]["token"] == t["token"] for t in content)
    assert all(t["logprob"] <= 0 for t in content)


def test_a_queue_that_is_full_answers_429(two: Cluster) -> None:
    client = open_story(two, stream=True, n=16)
    until(lambda: two.metric("sequences_waiting") == 8)
    answer = two.complete(["a"] * 16)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    reset(client)


def test_a_prompt_over_the_context_is_refused(two: Cluster) -> None:
    answer = two.complete([5] * 9000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


# Clients that leave


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_frees_its_blocks(two: Cluster, stream: bool, n: int) -> None:
    client = open_story(two, stream, n)
    until(lambda: two.metric("sequences_running") == n)
    reset(client)
    two.until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_before_the_first_token_free_their_blocks(two: Cluster, stream: bool) -> None:
    accepted = two.metric("prompt_tokens_total")
    for _ in range(12):
        reset(open_story(two, stream))
    two.until_idle()
    assert two.metric("prompt_tokens_total") >= accepted


def test_a_client_that_does_not_read_holds_up_nobody(two: Cluster) -> None:
    client = open_story(two, stream=True, n=4)
    until(lambda: two.metric("sequences_running") == 4)
    assert two.texts("Hi", 4)
    reset(client)


# Strangers at the ports

HEADER = struct.Struct("<HBBHBBIIQQ")
NOISE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "noise": bytes(range(256)) * 4,
    "another version": HEADER.pack(0x5A1B, 9, 1, 0, 0, 0, 1, 0, 0, 0),
    "an unknown kind": HEADER.pack(0x5A1B, 1, 77, 0, 0, 0, 1, 0, 0, 0),
    "a step first": HEADER.pack(0x5A1B, 1, 2, 0, 0, 0, 1, 0, 0, 0),
    "lying lengths": HEADER.pack(0x5A1B, 1, 1, 0, 0, 0, 1, 2**32 - 1, 0, 2**63),
    "a greeting that is none": HEADER.pack(0x5A1B, 1, 1, 0, 0, 0, 1, 4, 0, 0) + b"\xc1" * 4,
    "half a frame": HEADER.pack(0x5A1B, 1, 1, 0, 0, 0, 1, 100, 0, 0),
}


def listening(process: Process) -> list[int]:
    return [c.laddr.port for c in psutil.Process(process.popen.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]


@pytest.mark.parametrize("kind", NOISE)
def test_bytes_that_mean_nothing_disturb_nobody(two: Cluster, kind: str) -> None:
    before = two.texts(PROMPTS[0])
    for port in [*two.tensor_ports(), *listening(two.head)]:
        with socket.create_connection(("127.0.0.1", port), 5) as stranger:
            stranger.sendall(NOISE[kind])
    assert two.texts(PROMPTS[0]) == before
    assert "Traceback" not in two.story()


# Splits


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One node, one prompt after the other, nothing to find in the prefix cache."""
    with served(tmp_path_factory.mktemp("one"), 1, "--context", "512") as one:
        return [one.texts(prompt, TOKENS)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_splits_answer_alike_alone_and_in_a_batch(tmp_path: Path, expected: list[str], nodes: int) -> None:
    with served(tmp_path, nodes, "--context", "512", "--step-tokens", "64") as made:
        alone = [made.texts(prompt, TOKENS)[0] for prompt in PROMPTS]
        batch = made.texts(PROMPTS * 2, TOKENS)
        assert (alone, batch) == (expected, expected * 2)
        made.until_idle()


# Nodes that come and go


def killed(made: Cluster, at: int) -> None:
    made.nodes[at].signal(signal.SIGKILL)
    made.nodes[at].wait()


@pytest.mark.parametrize("at", [0, 1])
def test_what_a_killed_node_held_is_taken_over_and_answers_are_as_they_would_have_been(tmp_path: Path, at: int) -> None:
    with served(tmp_path, 2) as made:
        before, story = made.texts(PROMPTS[0]), made.texts("A story:", 60, n=2)
        answers: list[list[str]] = []
        client = threading.Thread(target=lambda: answers.append(made.texts("A story:", 60, n=2)))
        client.start()
        until(lambda: made.metric("sequences_running") == 2)
        killed(made, at)
        client.join(30)
        assert answers == [story]
        made.join("--name", "another")
        until(lambda: made.metric("nodes") == 2)
        assert made.texts(PROMPTS[0]) == before
        made.until_idle()


def test_a_stream_waits_for_a_node_where_none_is_left(tmp_path: Path) -> None:
    with served(tmp_path, 1) as made, ThreadPoolExecutor(1) as pool:
        whole = made.texts("A story:", 60)[0]
        stream = pool.submit(lines_of, made, 60, seen := threading.Event())
        assert seen.wait(30)
        killed(made, 0)
        made.until_lost()
        assert made.complete("x").json()["error"]["code"] == "not_ready"
        made.join("--name", "another")
        events = stream.result(30)
        assert events[-1] == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == whole
        made.until_idle()


def test_a_stream_that_waited_too_long_ends_with_an_error_event(tmp_path: Path) -> None:
    with served(tmp_path, 1, "--wait", "1") as made, ThreadPoolExecutor(1) as pool:
        stream = pool.submit(lines_of, made, 4000, seen := threading.Event())
        assert seen.wait(30)
        killed(made, 0)
        assert "no nodes came" in json.loads(stream.result(30)[-1])["error"]["message"]
        made.until_idle()


def test_nodes_that_leave_and_come_again_and_again_are_served_with(tmp_path: Path) -> None:
    with served(tmp_path, 1) as made:
        before = made.texts(PROMPTS[0])
        for _ in range(3):
            node = made.nodes[-1]
            node.signal(signal.SIGINT)
            assert node.wait() == 0
            made.until_lost()
            made.join("--name", "again")
            made.until_ready()
            assert made.texts(PROMPTS[0]) == before


def test_a_node_that_joins_later_waits_as_a_spare(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        made.serve("--min-nodes", "1")
        made.join("--name", "first")
        made.until_ready()
        before = made.texts(PROMPTS[0])
        spare = made.join("--name", "spare")
        until(lambda: made.metric("nodes") == 2)
        killed(made, 0)
        made.until_ready()
        assert made.texts(PROMPTS[0]) == before
        assert spare.popen.poll() is None


# Ends


def test_nodes_without_patience_go_with_their_head(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        made.serve("--min-nodes", "2", "--spread")
        for i in range(2):
            made.join("--name", f"n{i}", "--patience", "0")
        made.until_ready()
        made.head.signal(signal.SIGKILL)
        assert [node.wait() for node in made.nodes] == [1, 1]
        assert all("the head" in node.said and "Traceback" not in node.said for node in made.nodes)


def layers(made: Cluster) -> dict[str, tuple[int, int]]:
    found = asyncio.run(describe(f"127.0.0.1:{made.control_port}"))
    return {node.name: (node.first_layer, node.end_layer) for node in found.nodes}


def test_nodes_find_a_head_that_is_started_anew_and_serve_the_layers_that_they_still_hold(tmp_path: Path) -> None:
    with served(tmp_path, 2) as made:
        before, held, head = made.texts(PROMPTS[0]), layers(made), made.head
        head.signal(signal.SIGKILL)
        head.wait()
        until(lambda: all("the head was lost" in node.said for node in made.nodes))
        made.serve("--min-nodes", "2", "--spread")
        made.until_ready()
        assert (made.texts(PROMPTS[0]), layers(made)) == (before, held)
        assert all("Traceback" not in node.said for node in made.nodes)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_lets_a_node_go_when_its_layers_were_moved_and_a_second_one_at_once(tmp_path: Path, times: int) -> None:
    with served(tmp_path, 2) as made, ThreadPoolExecutor(1) as pool:
        whole = made.texts("A story:", 60)[0]
        stream = pool.submit(lines_of, made, 60, seen := threading.Event())
        assert seen.wait(30)
        for _ in range(times):
            made.nodes[0].signal(signal.SIGINT)
        assert made.nodes[0].wait() == 0
        assert "Traceback" not in made.nodes[0].said
        events = stream.result(30)
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_every_process_of_up(tmp_path: Path, number: signal.Signals) -> None:
    with cluster(tmp_path) as made:
        made.up("--nodes", "3")
        made.until_ready()
        family = made.head.family()
        assert len(family) == 4
        made.head.signal(number)
        assert made.head.wait() == 0
        gone(family)
        assert "Traceback" not in made.head.said


def test_serve_sends_its_nodes_home(tmp_path: Path) -> None:
    with served(tmp_path, 2) as made:
        made.head.signal(signal.SIGINT)
        assert [made.head.wait(), *(node.wait() for node in made.nodes)] == [0, 0, 0]
        assert all("the head shut down" in node.said for node in made.nodes)


@pytest.mark.real
def test_cluster_serves_again_after_a_node_was_lost(tmp_path: Path) -> None:
    with served(tmp_path, 2) as made:
        made.nodes[0].signal(signal.SIGKILL)
        made.join("--name", "another")
        until(lambda: made.complete("Hi", 2).status_code == 200, made.story, 15)
        assert [made.complete("Hi", 2).status_code for _ in range(20)] == [200] * 20


@pytest.mark.real
def test_two_clusters_do_not_share_a_port(tmp_path: Path) -> None:
    port = str(free_port())
    both = [Process(tmp_path / f"{i}.log", "up", "--port", port, "--control-port", "0", "--threads", "1") for i in range(2)]
    try:
        until(lambda: all("Ctrl-C ends all" in p.said or p.popen.poll() is not None for p in both), bound=30)
        until(lambda: any(p.popen.poll() == 2 for p in both), lambda: "both say that they serve", 5)
    finally:
        for process in both:
            process.end()


@pytest.mark.real
def test_cached_tokens_are_at_most_the_prompts(tmp_path: Path) -> None:
    with served(tmp_path, 1) as made:
        prompt = "The quick brown fox jumps over the lazy dog. " * 20
        usage = [made.complete(prompt, 8).json()["usage"] for _ in range(2)][1]
        assert 0 < usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
