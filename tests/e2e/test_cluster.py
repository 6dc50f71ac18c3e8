"""Real processes, real sockets, trained weights: what a client sees, and what becomes of the processes.

Tests that share a cluster follow each other. Whoever loses a node gives the cluster another one; the last test of each ends it.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from tests.support.cluster import Cluster, Process, cluster, free_port, gone, served, until
from tests.support.stories import open_story, reset, streaming

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPTS = ["The capital of France is", "1, 2, 3,", "def add(a, b):\n", "In the year 1969, " * 12, "Ein Satz über"]
TOKENS = 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, each of which holds layers."""
    with served(tmp_path_factory.mktemp("pair"), 2, "--slots", "8", "--queue", "16") as made:
        yield made


@pytest.fixture
def two(pair: Cluster) -> Iterator[Cluster]:
    """After the test nothing is held in it, and it answers."""
    yield pair
    pair.until_idle()
    assert pair.texts("Hi", 1)


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


def test_bytes_that_mean_nothing_disturb_nobody(two: Cluster) -> None:
    before = two.texts(PROMPTS[0])
    for kind, noise in NOISE.items():
        for port in [*two.tensor_ports(), *listening(two.head)]:
            with socket.create_connection(("127.0.0.1", port), 5) as stranger:
                stranger.sendall(noise)
        assert two.texts(PROMPTS[0]) == before, kind
    assert "Traceback" not in two.story()


# Splits


@pytest.fixture(scope="module")
def shrinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Five nodes at first; they are not replaced."""
    with served(tmp_path_factory.mktemp("shrinking"), 5, "--context", "1024", "--step-tokens", "64", "--wait", "1") as made:
        yield made


def kill_oldest(made: Cluster) -> None:
    node = made.living[0]
    node.signal(signal.SIGKILL)
    node.wait()


def answers_afresh(made: Cluster) -> list[str]:
    """One prompt after the other, nothing of which is found in the prefix cache."""
    answers = [made.complete(prompt, TOKENS).json() for prompt in PROMPTS]
    assert not any(answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers)
    return [answer["choices"][0]["text"] for answer in answers]


def test_splits_answer_alike_alone_and_in_a_batch(two: Cluster, shrinking: Cluster) -> None:
    expected = answers_afresh(two)
    for nodes in (5, 3, 1):
        for left in range(len(shrinking.layers()) - 1, nodes - 1, -1):
            kill_oldest(shrinking)
            shrinking.until_spread(left)
        alone = answers_afresh(shrinking)
        batch = shrinking.texts(PROMPTS * 2, TOKENS)
        assert (alone, batch) == (expected, expected * 2), f"{nodes} nodes"
        shrinking.until_idle()


def test_a_stream_that_waited_too_long_ends_with_an_error_event(shrinking: Cluster) -> None:
    """After the test before it, which leaves one node."""
    with ThreadPoolExecutor(1) as pool:
        stream = streaming(shrinking, pool, 900)
        kill_oldest(shrinking)
        assert "no nodes came" in json.loads(stream.result(30)[-1])["error"]["message"]
        shrinking.until_idle()


# Nodes that come and go


def text_of(events: list[str]) -> str:
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


@pytest.fixture(scope="module")
def story(pair: Cluster) -> list[str]:
    """What streams say that nothing happens to."""
    return pair.texts("A story:", 60, n=2)


@pytest.mark.parametrize("at", [0, 1])
def test_what_a_killed_node_held_is_taken_over_and_answers_are_as_they_would_have_been(two: Cluster, story: list[str], at: int) -> None:
    """at: the stage."""
    layers = two.layers()
    name = sorted(layers, key=lambda name: layers[name])[at]
    (node,) = (node for node in two.living if name in node.arguments)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(two.texts, "A story:", 60, n=2)
        until(lambda: two.metric("sequences_running") == 2)
        node.signal(signal.SIGKILL)
        assert asked.result(30) == story
    two.join("--name", f"after-{at}")
    assert [two.complete("Hi", 2).status_code for _ in range(20)] == [200] * 20
    two.until_spread(2)
    assert two.texts("A story:", 60, n=2) == story


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_lets_a_node_go_when_its_layers_were_moved_and_a_second_one_at_once(two: Cluster, story: list[str], times: int) -> None:
    first = two.living[0]
    with ThreadPoolExecutor(1) as pool:
        stream = streaming(two, pool, 60)
        for _ in range(times):
            first.signal(signal.SIGINT)
        assert first.wait() == 0
        assert "Traceback" not in first.said
        assert text_of(stream.result(30)) == story[0]
    two.join("--name", f"after-ctrl-c-{times}")
    two.until_spread(2)


def test_serve_sends_its_nodes_home(pair: Cluster) -> None:
    """The last test of this cluster."""
    nodes = pair.living
    pair.head.signal(signal.SIGINT)
    assert [pair.head.wait(), *(node.wait() for node in nodes)] == [0, 0, 0]
    assert all("the head shut down" in node.said for node in nodes)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node that has all layers, as every test leaves one; they do not wait for a head that they have lost."""
    with cluster(tmp_path_factory.mktemp("one")) as made:
        made.serve()
        made.join("--name", "n0", "--patience", "0")
        made.until_ready()
        yield made


def test_cached_tokens_are_at_most_the_prompts(one: Cluster) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 20
    usage = [one.complete(prompt, 2).json()["usage"] for _ in range(2)][1]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


def test_nodes_that_leave_and_come_again_are_served_with(one: Cluster) -> None:
    before = one.texts(PROMPTS[0])
    for _ in range(2):
        node = one.nodes[-1]
        node.signal(signal.SIGINT)
        assert node.wait() == 0
        one.until_lost()
        one.join("--name", "again", "--patience", "0")
        one.until_ready()
        assert one.texts(PROMPTS[0]) == before


def test_a_node_that_joins_later_waits_as_a_spare(one: Cluster) -> None:
    before = one.texts(PROMPTS[0])
    spare = one.join("--name", "spare", "--patience", "0")
    until(lambda: one.metric("nodes") == 2)
    assert one.layers()["spare"] == (0, 0)
    kill_oldest(one)
    one.until_ready()
    assert one.texts(PROMPTS[0]) == before
    assert spare.popen.poll() is None


def test_a_stream_waits_for_a_node_where_none_is_left(one: Cluster) -> None:
    whole = one.texts("A story:", 60)[0]
    with ThreadPoolExecutor(1) as pool:
        stream = streaming(one, pool, 60)
        kill_oldest(one)
        try:
            until(lambda: one.metric("nodes") == 0, one.story)  # until then requests wait, too
            assert one.complete("x").json()["error"]["code"] == "not_ready"
        finally:
            one.join("--name", "another", "--patience", "0")  # the stream would wait for ever
        assert text_of(stream.result(30)) == whole
        one.until_idle()


# Ends


def test_nodes_without_patience_go_with_their_head(one: Cluster) -> None:
    """The last test of this cluster: one node has layers, one has none."""
    nodes = [one.nodes[-1], one.join("--name", "idle", "--patience", "0")]
    until(lambda: one.metric("nodes") == 2)
    one.head.signal(signal.SIGKILL)
    assert [node.wait() for node in nodes] == [1, 1]
    assert all("the head" in node.said and "Traceback" not in node.said for node in nodes)


def test_ctrl_c_ends_every_process_of_up(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        made.up("--nodes", "2")
        made.until_ready()
        family = made.head.family()
        assert len(family) == 3
        made.head.signal(signal.SIGINT)
        assert made.head.wait() == 0
        gone(family)
        assert "Traceback" not in made.head.said


def test_of_two_clusters_with_one_port_one_serves_until_it_is_terminated(tmp_path: Path) -> None:
    port = str(free_port())
    flags = ("--port", port, "--control-port", "0", "--nodes", "1", "--threads", "1")
    both = [Process(tmp_path / f"{i}.log", "up", *flags) for i in range(2)]
    try:
        until(lambda: all("Ctrl-C ends all" in p.said or p.popen.poll() is not None for p in both), bound=30)
        until(lambda: any(p.popen.poll() == 2 for p in both), lambda: "both say that they serve", 5)
        (serving,) = (process for process in both if process.popen.poll() is None)
        family = serving.family()
        serving.signal(signal.SIGTERM)
        assert serving.wait() == 0
        gone(family)
    finally:
        for process in both:
            process.end()
