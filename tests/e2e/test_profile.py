"""`shoal profile` on a real cluster of two nodes, running elsewhere or started by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec
import pytest

from shoal.observed.cluster import ClusterView
from shoal.observed.computing import Computed
from shoal.profiling.profile import Profile, covered
from tests.support.cluster import Cluster, cluster, free_port, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

NAME = "<img src=x> & 'b'"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        made.serve("--min-nodes", "2", "--spread", "--model", str(smollm2))
        made.join("--name", "a", "--threads", "1")
        made.join("--name", NAME, "--threads", "1")
        made.until_ready()
        made.until_spread(2)
        yield made
        assert "Traceback" not in made.story()


def shoal(home: Path, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SHOAL_HOME": str(home), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "shoal", "profile", *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_figures_of_one_stream_add_up_to_the_wall_time(made: Cluster, tmp_path: Path) -> None:
    html, chrome = tmp_path / "p.html", tmp_path / "p.json"
    began = perf_counter()
    done = shoal(tmp_path, "--url", made.url, "--seconds", "4", "--streams", "1", "--json", "--html", html, "--chrome", chrome)
    took = perf_counter() - began
    found = msgspec.json.decode(done.stdout, type=Profile, strict=True)
    assert set(found.nodes) == {"a", NAME} and found.tokens > 0 and found.lost == found.left_out == 0
    assert 0.5 * 4 < found.wall < took
    assert sum(part.share for part in found.parts) == pytest.approx(1)
    for stage in found.stages:
        assert stage.busy + stage.bubble + stage.idle == pytest.approx(found.wall, rel=1e-3)
        assert 0 < stage.compute <= stage.busy * 1.001
    assert {(one.node, one.kind) for one in found.limits} >= {(node, "decode") for node in found.nodes}
    assert [one.bytes_per_token for one in found.links] == [0, 576 * 4, 0]
    measured = {(one.node, one.kind): one for one in found.computing}
    assert set(measured) == {(node, kind) for node in found.nodes for kind in ("decode", "prompt")}
    for (node, _), one in measured.items():
        assert one.counted and sum(one.parts.values()) == pytest.approx(one.compute)
        heads = {"head"} if node == found.nodes[-1] else set[str]()
        assert {"attention", "feed-forward"} | heads <= set(one.parts) <= {"attention", "feed-forward", "other"} | heads
    for stage in found.stages:
        assert sum(one.compute for one in found.computing if one.node == stage.node) == pytest.approx(stage.compute)
    assert found.predicted > 0 and any(one.change == "without a" for one in found.changes)

    events = json.loads(chrome.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"head", *found.nodes, f"head → {found.nodes[0]}", f"{found.nodes[0]} → {found.nodes[1]}", f"{found.nodes[1]} → head"} <= names
    assert sum(event["name"] == "compute" for event in events) == 2 * found.steps
    # Chunks of a prompt are in the pipeline at once; the steps of a single stream that decode follow one another, so that their parts
    # add up to the time that passed in them. All steps together, and what is between them, are the wall time.
    slices = [event for event in events if event["ph"] == "X"]
    assert sum(event["dur"] for event in slices) / 1e6 == pytest.approx(sum(part.seconds for part in found.parts), rel=0.01)
    decoding = [event for event in slices if event["args"]["rows"] == 1]
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in decoding]
    assert len({event["args"]["step"] for event in decoding}) > 20
    assert sum(event["dur"] for event in decoding) == pytest.approx(covered(spans), rel=0.1)
    assert covered((event["ts"], event["ts"] + event["dur"]) for event in slices) / 1e6 + found.idle == pytest.approx(found.wall, rel=0.02)
    page = html.read_text()
    assert "<img" not in page and "&lt;img src=x&gt; &amp;" in page and "http" not in page.replace("http-equiv", "")


def test_streams_at_once_share_steps_and_are_told_as_text(made: Cluster, tmp_path: Path) -> None:
    told = shoal(tmp_path, "--url", made.url, "--seconds", "2", "--streams", "4").stdout
    assert (
        "4 streams" in told
        and "Where the time of a step goes" in told
        and "What computing is made of" in told
        and "measured" in told
        and NAME in told
    )


def test_parts_that_nodes_count_are_all_of_their_computing_and_attention_grows_with_the_context(made: Cluster) -> None:
    def counted() -> dict[str, Computed]:
        """When nothing has been counted for two heartbeats."""
        seen: list[dict[str, Computed | None]] = []

        def at_rest() -> bool:
            view = msgspec.json.decode(made.http.get("/operator/cluster").content, type=ClusterView)
            seen.append({machine.name: machine.computed for machine in view.machines})
            return len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]

        until(at_rest, made.story, every=0.6)
        return {name: computed for name, computed in seen[-1].items() if computed is not None}

    def attention(prompt: str) -> dict[str, float]:
        """Times that it takes as long as the feed-forward parts, by node; the median of some, as nodes may be paused."""
        ratios: dict[str, list[float]] = {}
        for _ in range(3):
            before = counted()
            assert made.complete(prompt, 40, ignore_eos=True).status_code == 200
            for name, now in counted().items():
                since = now.decoding - before[name].decoding
                ratios.setdefault(name, []).append(since.attention / since.feed_forward)
        return {name: median(of) for name, of in ratios.items()}

    before = counted()
    assert set(before) == {"a", NAME}
    had = made.total("stage_compute_seconds_sum", node="a")
    short = attention("Once")
    long = attention("Once upon a time there was a fish. " * 150)
    assert all(long[name] > 1.5 * short[name] for name in short)
    now = counted()["a"]
    counts = sum((now.decoding + now.prompts - before["a"].decoding - before["a"].prompts).seconds)
    assert counts == pytest.approx(made.total("stage_compute_seconds_sum", node="a") - had, rel=1e-3)
    assert made.total("node_compute_seconds_total", node="a") == pytest.approx(sum((now.decoding + now.prompts).seconds))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "0"], "--seconds"),
        (["--streams", "0"], "--streams"),
        (["--streams", "40"], "--slots 32"),
        (["--model", "nonsense"], "unknown model 'nonsense'"),
        (["--html", "/nowhere/p.html"], "cannot be written"),
        (["--kv-cache", "maybe"], "--kv-cache"),
        (["--kv-cache", "off", "--html", "p.html"], "leave out --url, --html"),
        (["--url", "ftp://x"], "is not the address of an API"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in shoal(tmp_path, *arguments, code=2).stderr


def test_a_url_where_nobody_listens_or_a_model_that_is_not_served(made: Cluster, tmp_path: Path) -> None:
    told = shoal(tmp_path, "--url", f"http://127.0.0.1:{free_port()}", code=2).stderr
    assert "does not answer" in told and len(told.splitlines()) == 1
    told = shoal(tmp_path, "--url", made.url, "--model", "nonsense", code=2).stderr
    assert "nonsense" in told and len(told.splitlines()) == 1


def test_recomputing_gives_the_same_tokens_and_takes_longer(smollm2: Path, tmp_path: Path) -> None:
    told = shoal(tmp_path, "--kv-cache", "off", "--model", smollm2, "--tokens", "32", "--threads", "1", "--json")
    found = json.loads(told.stdout)
    assert found["tokens"] == 32
    assert found["speedup"] == pytest.approx(found["recomputed_seconds"] / found["kept_seconds"]) and found["speedup"] > 1.5
