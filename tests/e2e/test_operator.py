"""/operator over HTTP, with real nodes: what it shows is what the other ways to ask show, and what happens to nodes is seen in it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from shoal.observed.event import EventKind
from tests.support.cluster import BOUND, Cluster, cluster, until
from tests.support.hub_server import Hub

pytestmark = [pytest.mark.real, pytest.mark.slow]

STORY = "Once upon a time, a fisherman"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        yield made
        assert "Traceback" not in made.story()


def asked(made: Cluster, path: str) -> Any:
    answer = made.http.get(f"/operator/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def happened(made: Cluster, kind: EventKind) -> list[dict[str, Any]]:
    return asked(made, f"events?kind={kind.value}")["events"]


class Story:
    """A completion that is streamed in a thread."""

    def __init__(self, made: Cluster, tokens: int) -> None:
        self.tokens: list[str] = []
        self.id = ""
        body = {"prompt": STORY, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        self._thread = threading.Thread(target=self._read, args=(made.url, body))
        self._thread.start()

    def _read(self, url: str, body: dict[str, Any]) -> None:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=BOUND, trust_env=False) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    self.id = chunk["id"]
                    self.tokens += [choice["text"] for choice in chunk["choices"]]

    def text(self) -> str:
        self._thread.join()
        return "".join(self.tokens)


@pytest.mark.parametrize("workers", [1, 2])
def test_figures_are_those_of_the_api_and_a_loss_is_in_the_timeline(made: Cluster, smollm2: Path, workers: int) -> None:
    made.serve("--min-nodes", "3", "--spread", "--model", str(smollm2), "--api-workers", str(workers))
    for name in "abc":
        made.join("--name", name)
    made.until_ready()
    made.until_spread(3)
    wanted = "".join(made.texts(STORY, 150, ignore_eos=True))
    view = asked(made, "cluster")
    assert {m["name"]: (m["first_layer"], m["end_layer"]) for m in view["machines"]} == made.layers()
    assert [view["epoch"], len(view["machines"])] == made.metrics("epoch", "nodes")
    assert view["predicted"] == pytest.approx(made.metric("predicted_tokens_per_second"))
    assert view["state"] == "serving" and view["attention"] == [] and view["measured"] > 0
    assert all(stage["compute"] > 0 and 0 < stage["share"] <= 1 and stage["hop"] >= 0 for stage in view["stages"])
    assert sum(stage["share"] for stage in view["stages"]) <= 1.0 + 1e-6

    request = asked(made, "requests")["requests"][0]
    assert (request["state"], request["generated"]) == ("ended", 150)
    told = asked(made, f"requests/{request['id']}/timeline")
    assert sum(step["tokens"] for step in told["steps"]) == 150
    for before, after in zip(told["steps"], told["steps"][1:], strict=False):
        assert before["number"] < after["number"] and before["at"] <= after["at"]
    assert told["recoveries"] == []

    word = wanted.split()[20]
    assert made.complete(STORY, 150, ignore_eos=True, stop=[word]).json()["choices"][0]["finish_reason"] == "stop"
    assert asked(made, "requests")["requests"][0]["state"] == "ended", "at a stop string"

    story = Story(made, 150)
    until(lambda: len(story.tokens) > 10)
    victim = next(node for node in made.living if view["stages"][1]["node"] in node.arguments)
    victim.signal(signal.SIGKILL)
    assert story.text() == wanted
    told = asked(made, f"requests/{story.id}/timeline")
    (recovery,) = told["recoveries"]
    assert recovery["node"] == view["stages"][1]["node"] and 10 < recovery["kept"] < 150
    assert recovery["ended"] - recovery["at"] == pytest.approx(sum(recovery["parts"].values()), abs=0.01)
    assert sum(step["tokens"] for step in told["steps"]) == 150 and len(told["epochs"]) == 2
    (lost,) = happened(made, EventKind.LOST)
    assert lost["node"] == recovery["node"]
    assert [advice["node"] for advice in asked(made, "cluster")["attention"]] == [lost["node"]]
    assert made.total("interruption_seconds_count") == 1


def test_an_operator_sees_what_a_drain_would_do_and_does_it(made: Cluster, smollm2: Path) -> None:
    made.serve("--min-nodes", "2", "--spread", "--model", str(smollm2))
    made.join("--name", "a")
    made.join("--name", "<b> & 'c'")
    made.until_ready()
    made.until_spread(2)
    plan = asked(made, "preview?node=a&action=drain")
    assert [(stage["node"], stage["end_layer"]) for stage in plan["stages"]] == [("<b> & 'c'", 30)]
    assert plan["moved"]["<b> & 'c'"] == 30 - (made.layers()["<b> & 'c'"][1] - made.layers()["<b> & 'c'"][0]) and plan["why"] == ""
    renamed = made.http.post("/operator/nodes/%3Cb%3E%20&%20'c'", json={"action": "rename", "name": "big"})
    assert renamed.json() == {"done": True, "message": "<b> & 'c' is called big from now on"}
    capped = made.http.post("/operator/nodes/a", json={"action": "cap", "memory": "1MiB"})
    assert capped.status_code == 200, capped.text
    until(lambda: made.layers() == {"a": (0, 0), "big": (0, 30)}, made.story)
    made.until_ready()
    refused = made.http.post("/operator/nodes/big", json={"action": "cap", "memory": "1MiB"})
    assert refused.status_code == 409 and "cannot be limited" in refused.json()["error"]["message"]
    assert made.http.post("/operator/nodes/a", json={"action": "drain"}).json()["done"]
    until(lambda: set(made.layers()) == {"big"}, made.story)
    assert len("".join(made.texts(STORY, 20))) > 0
    refused = made.http.post("/operator/nodes/a", json={"action": "remove"})
    assert refused.status_code == 409 and "there is no node 'a'; the nodes are big" in refused.json()["error"]["message"]


def test_requests_that_are_refused_and_kept_prompts_that_give_way_are_told(made: Cluster, smollm2: Path) -> None:
    made.serve("--model", str(smollm2), "--slots", "2", "--queue", "1", "--kv-tokens", "320", "--context", "256")
    made.join("--name", "a")
    made.until_ready()
    for word in ("ships", "whales", "rocks", "birds", "clouds", "stars"):
        made.texts(f"Tell me all about {word}: " + f"{word} " * 80, 4)
    until(lambda: happened(made, EventKind.CACHE), made.story)
    with ThreadPoolExecutor(8) as pool:  # more at once than two slots and the queue take
        statuses = [answer.status_code for answer in pool.map(lambda _: made.complete(STORY, 150), range(8))]
    assert set(statuses) == {200, 429}, statuses
    until(lambda: happened(made, EventKind.REJECTED), made.story)
    assert "429" in happened(made, EventKind.REJECTED)[0]["message"]


def test_a_model_is_fetched_for_an_operator(tmp_path: Path, smollm2: Path) -> None:
    name = "SmolLM2-135M-Instruct-Q4_1.gguf"
    with Hub("org/SmolLM2-GGUF", {name: smollm2.read_bytes()}).running() as hub, cluster(tmp_path) as made:
        elsewhere = {
            "SHOAL_CACHE": str(tmp_path / "cache"),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "hf"),
        }
        made.up("--nodes", "1", "--memory", "600MiB", "--model", str(smollm2), **elsewhere)
        made.until_ready()
        assert made.http.post("/operator/models", json={"pull": "org/SmolLM2-GGUF"}).json()["done"]
        (told,) = until(lambda: happened(made, EventKind.FETCHED), made.story)
        assert told["message"] == "org/SmolLM2-GGUF was fetched"
        view = asked(made, "models")
        assert view["pulls"][0]["done"] == view["pulls"][0]["total"] == smollm2.stat().st_size and not view["pulls"][0]["failed"]
        here = {model["name"]: model for model in view["models"]}
        assert here["org/SmolLM2-GGUF:Q4_1"]["here"] and here["org/SmolLM2-GGUF:Q4_1"]["fits"]
        assert made.http.post("/operator/models", json={"pull": "org/other"}).status_code in (200, 409)
        refused = made.http.post("/operator/models", json={"pull": "no such model"})
        assert refused.status_code == 409 and "no such" in refused.json()["error"]["message"]
