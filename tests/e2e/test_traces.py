"""Traces of requests, of real processes to receivers of OpenTelemetry's protocol."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.cluster import Cluster, cluster, free_port, served, until
from tests.support.otlp import Received, Receiver, Tree, grpc_receiver, http_receiver

pytestmark = [pytest.mark.real, pytest.mark.slow]

CLIENT = "00f067aa0ba902b7"
SERVER, ERROR = 2, 2
"""A span's kind, and its status."""
FLAGS = ("--slots", "4", "--context", "1024")


@pytest.fixture(scope="module", autouse=True)
def soon() -> Iterator[None]:
    """Spans are sent soon, not every five seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with http_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Cluster]:
    with served(tmp_path_factory.mktemp("traces"), 2, *FLAGS, "--traces", receiver.where) as made:
        yield made


def traceparent(number: int, sampled: bool = True) -> tuple[str, str]:
    trace = f"{number:032x}"
    return trace, f"00-{trace}-{CLIENT}-{int(sampled):02x}"


def ask(made: Cluster, parent: str, tokens: int = 24, **options: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Count to fifty."}], "max_tokens": tokens, "temperature": 0, **options}
    return made.http.post("/v1/chat/completions", json=body, headers={"traceparent": parent, "tracestate": "other=1"})


def check_within(tree: Tree, above: Received) -> None:
    """What is below a step lies within it, one after the other."""
    at = above.began
    for span in tree.below(above):
        assert at - 1e-6 <= span.began <= span.ended <= above.ended + 1e-6
        at = span.ended


def test_a_trace_shows_the_way_of_a_request_through_head_stages_and_links(made: Cluster, receiver: Receiver) -> None:
    trace, parent = traceparent(1)
    answer = ask(made, parent)
    assert answer.status_code == 200
    usage = answer.json()["usage"]
    tree = receiver.until_whole(trace, "POST /v1/chat/completions", "decode", "steps")
    root = tree.only("POST /v1/chat/completions")
    assert (root.kind, root.parent, root.state, root.status) == (SERVER, CLIENT, "other=1", 0)
    asked = {"http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200, "url.scheme": "http"}
    model = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "smollm2-135m", "gen_ai.response.id": answer.json()["id"]}
    counted = {"gen_ai.usage.input_tokens": usage["prompt_tokens"], "gen_ai.usage.output_tokens": 24, "gen_ai.request.max_tokens": 24}
    assert (asked | model | counted).items() <= root.attributes.items()
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert [span.name for span in tree.below(root)] == ["prepare", "queue", "prefill", "decode"]
    for before, after in zip(tree.below(root), tree.below(root)[1:], strict=False):
        assert root.began - 1e-3 <= before.began <= before.ended <= after.began + 1e-3 and after.ended <= root.ended + 1e-3
    prefill, decode = tree.only("prefill"), tree.only("decode")
    assert prefill.attributes["shoal.prompt_tokens"] == usage["prompt_tokens"] and decode.attributes["shoal.tokens"] == 24
    single = [span for span in tree.below(decode) if span.name == "step"]
    together = [span for span in tree.below(decode) if span.name == "steps"]
    assert len(single) == 4 and [span.attributes["shoal.steps"] for span in together] == [8, 11]
    a, b = together[0].attributes["shoal.stages"]
    assert {a, b} == {"n0", "n1"}
    way = [f"link head → {a}", f"stage {a}", f"link {a} → {b}", f"stage {b}", f"link {b} → head"]
    assert [span.name for span in tree.below(single[0])] == ["schedule", *way, "apply"]
    assert [span.name for span in tree.below(tree.below(single[0])[4])] == ["wait", "compute", "sample"]
    for step in tree.named("step"):
        check_within(tree, step)
        for stage in tree.below(step):
            check_within(tree, stage)
    assert sum(span.attributes["shoal.tokens"] for span in (*tree.below(prefill), *single, *together)) == 24
    assert all(span.attributes["shoal.stages"] == [a, b] and len(span.attributes["shoal.link.median"]) == 3 for span in together)
    assert {"service.name": "shoal"}.items() <= receiver.resources[0].items()


def test_refusals_and_clients_that_leave_have_their_status(made: Cluster, receiver: Receiver) -> None:
    trace, parent = traceparent(2)
    assert ask(made, parent, tokens=-1).status_code == 400
    root = receiver.until_whole(trace, "POST /v1/chat/completions").only("POST /v1/chat/completions")
    assert (root.attributes["http.response.status_code"], root.status) == (400, 0)
    trace, parent = traceparent(3)
    body = {"prompt": "A very long story about the sea:", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with made.http.stream("POST", "/v1/completions", json=body, headers={"traceparent": parent}) as stream:
        next(stream.iter_lines())
    tree = receiver.until_whole(trace, "POST /v1/completions", "decode")
    root = tree.only("POST /v1/completions")
    assert root.attributes["shoal.client_left"] is True and root.attributes["http.response.status_code"] == 200
    assert 0 < root.attributes["gen_ai.usage.output_tokens"] < 900


def test_what_a_client_does_not_want_is_not_traced_and_what_is_no_traceparent_does_no_harm(made: Cluster, receiver: Receiver) -> None:
    unwanted, parent = traceparent(4, sampled=False)
    assert ask(made, parent).status_code == 200
    known = len(receiver.spans)
    assert ask(made, "00-zzz").status_code == 200
    until(lambda: any(span.kind == SERVER for span in receiver.spans[known:]))
    root = next(span for span in receiver.spans[known:] if span.kind == SERVER)
    assert root.parent == "" and not receiver.of(unwanted)


def test_workers_of_the_api_and_an_interruption_are_in_the_same_trace(tmp_path: Path) -> None:
    with grpc_receiver() as receiver, served(tmp_path, 2, *FLAGS, "--traces", receiver.where, "--api-workers", "2") as made:
        trace, parent = traceparent(5)
        body = {"prompt": "A very long story about the sea:", "max_tokens": 300, "temperature": 0, "ignore_eos": True, "stream": True}
        with made.http.stream("POST", "/v1/completions", json=body, headers={"traceparent": parent}) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: "))
            for _ in range(20):
                next(lines)
            made.nodes[1].signal(signal.SIGKILL)
            assert [*lines][-1] == "data: [DONE]"
        tree = receiver.until_whole(trace, "POST /v1/completions", "decode", "interruption")
        root, decode, interruption = (tree.only(name) for name in ("POST /v1/completions", "decode", "interruption"))
        assert (root.parent, root.kind) == (CLIENT, SERVER) and root.attributes["gen_ai.usage.output_tokens"] == 300
        assert decode.parent == root.id and decode.attributes["shoal.tokens"] == 300
        assert interruption.parent == decode.id and interruption.attributes["shoal.node"] == "n1"
        assert decode.began <= interruption.began < interruption.ended <= decode.ended
        parts = [span.name for span in tree.below(interruption)]
        assert parts == [name for name in ("fence", "load", "link", "refill", "resume") if name in parts] and "load" in parts
        (own,) = interruption.links
        by_itself = receiver.until_whole(own, "interruption").only("interruption")
        assert by_itself.links == (trace,) and by_itself.parent == ""
        steps = [[span.name for span in tree.below(step) if span.name.startswith("stage ")] for step in tree.below(decode)]
        assert len(steps[0]) == 2 and ["stage n0"] in steps
        assert len(tree.spans) < 400


def test_with_a_share_of_0_only_clients_ask_for_traces(tmp_path: Path) -> None:
    with http_receiver() as receiver, served(tmp_path, 1, *FLAGS, "--traces", receiver.where, "--trace-sample", "0") as made:
        assert made.complete("Hello", 4).status_code == 200
        trace, parent = traceparent(6)
        assert ask(made, parent, 4).status_code == 200
        receiver.until_whole(trace, "POST /v1/chat/completions", "decode")
        assert {span.trace for span in receiver.spans} == {trace}


def test_a_receiver_that_is_away_does_no_harm_and_is_told_of_once(tmp_path: Path) -> None:
    port = free_port()
    with cluster(tmp_path) as made:
        made.start(
            "--log-format", "json", "--verbose", "serve", *FLAGS, "--discovery", "none", "--traces", f"http://127.0.0.1:{port}",
            "--port", str(made.port), "--control-port", str(made.control_port), "--api-workers", "2",
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
        )  # fmt: skip
        made.join("--name", "n0")
        made.until_ready()
        head, (trace, parent) = made.head, traceparent(7)
        assert ask(made, parent, 4).status_code == 200
        until(lambda: "cannot be sent" in head.said, head.describe)
        for _ in range(3):
            assert ask(made, parent, 4).status_code == 200
        with http_receiver(port) as receiver:
            again, parent = traceparent(8)
            until(lambda: ask(made, parent, 4).status_code == 200 and "are sent again" in head.said, head.describe, every=0.5)
            receiver.until_whole(again, "POST /v1/chat/completions", "decode")
        lines = [json.loads(line) for line in head.said.splitlines()]
        warnings = [line for line in lines if line["level"] not in ("info", "debug")]
        assert len([line for line in warnings if "cannot be sent" in line["event"]]) == 1, warnings
        assert not [line for line in lines if line["logger"].startswith(("opentelemetry", "urllib3", "requests"))]
        (told, *_) = [line for line in lines if line["event"] == "a request was answered" and line.get("trace_id") == trace]
        assert (told["path"], told["status"]) == ("/v1/chat/completions", 200) and len(told["span_id"]) == 16
        head.signal(signal.SIGTERM)
        assert head.wait() == 0
