"""Two models, and two copies of one, on the same nodes: real processes, trained weights."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from tests.support.cluster import MODEL, Cluster, cluster, until
from tests.support.restarts import BODIES, TOKENS, said

pytestmark = [pytest.mark.real, pytest.mark.slow]

OTHER = "tinyllama-1.1b"
PROMPT = "The capital of France is"


def described(made: Cluster) -> dict[str, Any]:
    """What `shoal nodes --json` says."""
    shown = made.start("nodes", "--head", f"127.0.0.1:{made.control_port}", "--json")
    assert shown.wait() == 0, shown.describe()
    return json.JSONDecoder().raw_decode(shown.said, shown.said.index("{\n"))[0]  # beside what gRPC logs


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("models")) as made:
        made.up("--model", MODEL, "--model", OTHER, "--nodes", "2", "--slots", "4", "--context", "512")
        made.until_ready()
        yield made


def test_two_models_answer_at_one_endpoint(two_models: Cluster) -> None:
    made = two_models
    assert [model["id"] for model in made.http.get("/v1/models").json()["data"]] == [MODEL, OTHER]
    with ThreadPoolExecutor(4) as pool:  # at once
        answers = [a.json() for a in pool.map(lambda model: made.complete(PROMPT, 12, model=model), [MODEL, OTHER, MODEL, OTHER])]
    assert [answer["model"] for answer in answers] == [MODEL, OTHER, MODEL, OTHER]
    texts = [answer["choices"][0]["text"] for answer in answers]
    assert texts[:2] == texts[2:] and texts[0] != texts[1], texts
    assert made.texts(PROMPT, 12) == texts[:1], "the first one is meant where none is named"
    unknown = made.complete(PROMPT, model="gpt-9")
    assert unknown.status_code == 404 and OTHER in unknown.text, unknown.text


def test_each_model_is_counted_and_described_for_itself(two_models: Cluster) -> None:
    made = two_models
    for model in (MODEL, OTHER):
        before = made.total("generated_tokens_total", model=model)
        made.texts(PROMPT, 5, model=model)
        until(lambda model=model, before=before: made.total("generated_tokens_total", model=model) - before == 5, made.story)
        assert made.total("ready", model=model, replica="1") == 1
    found = described(made)
    assert [(p["model"], p["replica"], p["state"]) for p in found["pipelines"]] == [(MODEL, 1, "serving"), (OTHER, 1, "serving")]
    assert len(found["nodes"]) == 2 and all([part["model"] for part in node["parts"]] == [MODEL, OTHER] for node in found["nodes"])
    layers = {
        model: sorted(part["first_layer"] for node in found["nodes"] for part in node["parts"] if part["model"] == model)
        for model in (MODEL, OTHER)
    }
    assert all(first == 0 < second for first, second in layers.values()), layers


def test_both_models_go_on_when_a_node_is_killed(two_models: Cluster) -> None:
    """The last one here: its cluster goes on with one node."""
    made = two_models
    wanted = {model: made.texts(PROMPT, 60, model=model) for model in (MODEL, OTHER)}
    node = psutil.Process(made.head.popen.pid).children()[0]
    with ThreadPoolExecutor(2) as pool:
        asked = {model: pool.submit(made.texts, PROMPT, 60, model=model) for model in wanted}
        until(lambda: made.total("sequences_running") == 2, made.story)
        node.send_signal(signal.SIGKILL)
        assert {model: answer.result() for model, answer in asked.items()} == wanted
    until(lambda: made.total("interruption_seconds_count", model=OTHER) == 1, made.story)


def test_streams_of_a_copy_that_is_lost_go_on_at_the_other_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    with cluster(tmp_path_factory.mktemp("copies")) as made:
        made.up("--replicas", "2", "--nodes", "2", "--slots", "8", "--context", "512")
        made.until_ready()
        until(lambda: made.total("ready") == 2, made.story)
        wanted = said(made)
        begun = [threading.Event() for _ in BODIES]

        def heard(number: int) -> list[str]:
            texts: dict[int, str] = {}
            body = {**BODIES[number], "max_tokens": TOKENS, "stream": True}
            with made.http.stream("POST", "/v1/completions", json=body) as stream:
                assert stream.status_code == 200, stream.read()
                for line in stream.iter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line.removeprefix("data: "))
                        assert "error" not in event, event
                        for choice in event["choices"]:
                            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
                        begun[number].set()
            return [texts[choice] for choice in sorted(texts)]

        with ThreadPoolExecutor(len(BODIES)) as pool:
            streams = [pool.submit(heard, number) for number in range(len(BODIES))]
            for one in begun:
                until(one.is_set, made.story)
            running = [made.total("sequences_running", replica=copy) for copy in ("1", "2")]
            assert all(running) and sum(running) == 4, running
            psutil.Process(made.head.popen.pid).children()[0].send_signal(signal.SIGKILL)
            assert [stream.result() for stream in streams] == wanted
        assert made.total("ready") == 1
        assert [pipeline["state"].split(":")[0] for pipeline in described(made)["pipelines"]].count("serving") == 1
        assert said(made) == wanted
        made.until_idle()


def test_one_copy_serves_where_the_second_has_no_node_until_one_joins(tmp_path_factory: pytest.TempPathFactory) -> None:
    with cluster(tmp_path_factory.mktemp("room")) as made:
        made.up("--replicas", "2", "--nodes", "1", "--slots", "8", "--context", "512")
        made.until_ready()
        made.head.until_said(f"{MODEL}/2 waits for room: none of the nodes that have joined is meant for it: node-1 runs {MODEL}/1")
        wanted = made.texts(PROMPT, 12)
        made.join()
        until(lambda: made.total("ready") == 2, made.story)
        assert made.texts(PROMPT, 12) == wanted
