"""What once went wrong in the gateway, the command line and the processes: each test holds that it no longer does."""

from __future__ import annotations

import asyncio
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal import AutoDistributedModel
from shoal.config import HeadSettings, from_environment
from shoal.errors import ConfigError, StageLost
from shoal.gateway.app import create_app
from shoal.node.stage_service import StageService
from shoal.pipeline.driver import Driver, Route
from shoal.request import FinishReason, Request, RequestId, TokenChunk
from shoal.scheduler.plan import StepPlan, StepResult
from shoal.scheduler.scheduler import Limits, Scheduler
from shoal.transport.memory import pair
from shoal.wire import messages
from shoal.wire.frame import Frame, Kind, WireCodec
from tests.support.cluster import MODEL, Process, free_port, served, until
from tests.support.engine import FakeEngine
from tests.support.http import CHAT, COMPLETIONS, fetch

# B1 node/head.py:304-318,324: _route_over stays set after the first route, so the second link of a last stage is cut at once


@pytest.mark.real
def test_cluster_serves_again_after_a_node_was_lost(tmp_path: Path) -> None:
    with served(tmp_path, 2) as made:
        made.nodes[0].signal(signal.SIGKILL)
        made.join("--name", "another")
        until(lambda: made.complete("Hi", 2).status_code == 200, made.story, 15)
        assert [made.complete("Hi", 2).status_code for _ in range(20)] == [200] * 20


# B2 node/stage_service.py:84-97, node/agent.py:221-239: a failed step is not heard of by the head; requests wait for ever


class Broken:
    nbytes, runtime, hidden = 0, "broken", 8

    def run(self, plan: StepPlan, hidden: object) -> Any:
        raise KeyError(plan.step)  # an executor's bug


async def compute(work: Callable[[], Frame], size: int) -> Frame:
    return work()


def service(stage: int) -> StageService:
    return StageService(Broken(), epoch=1, stage=stage, stages=2, wire_codec=WireCodec.RAW, compute=compute)


def step() -> Frame:
    plan = StepPlan(0, [], [], [], [], [])
    return Frame(Kind.STEP, 1, 0, messages.encode(messages.Step(messages.raw(plan), [])))


async def onward(frame: Frame, stage: int) -> Frame:
    """What a stage says to the one after it about a frame that it cannot run."""
    (before, upstream), (downstream, after) = pair(), pair()
    under_test = service(stage)
    under_test.link(downstream)
    await before.send(frame)
    serving = asyncio.ensure_future(under_test.serve(upstream))
    try:
        async with asyncio.timeout(2):
            return await after.receive()
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def test_an_executors_bug_reaches_the_head() -> None:
    assert asyncio.run(onward(step(), 0)).kind is Kind.ERROR


def test_an_error_of_the_stage_before_is_passed_on() -> None:
    error = Frame(Kind.ERROR, 1, 0, messages.encode(messages.Error("cannot", 0)))
    assert asyncio.run(onward(error, 1)).kind is Kind.ERROR


# B4 pipeline/driver.py:100,138: results that were received before the route was given up raise KeyError, and nobody retries


def test_a_result_behind_a_broken_first_link_is_the_routes_end_and_no_bug() -> None:
    async def go() -> None:
        (first, stage), (last, results) = pair(), pair()
        driver = Driver(Scheduler(Limits(8, 16, 64, 4, 32, 8)), lambda timing: None)
        driver.submit(Request(RequestId("a"), [1, 2, 3], 8))
        driving = asyncio.ensure_future(driver.drive(Route(1, first, results), [], lambda tokens: None))
        plan = messages.decode_plan(messages.decode_step((await stage.receive()).meta).plan)
        driver.cut("the route was given up")  # as the conductor does; a result is under way
        await last.send(Frame(Kind.RESULT, 1, plan.step, messages.encode(StepResult(plan.step, [], []))))
        await last.close()
        await driving

    with pytest.raises(StageLost):
        asyncio.run(go())


# B5 gateway/server.py:27-32: bound without listening, so a second server takes the same port, says so, and serves nothing


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


# B6 cli/cluster.py:77-78,91-92, cli/client.py:98: Ctrl-C is not looked at while a model is fetched


class Silent(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(30)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


def test_ctrl_c_while_fetching_ends_up(tmp_path: Path) -> None:
    hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    hub.daemon_threads = True
    asked = threading.Event()
    hub.process_request = lambda *a, real=hub.process_request: (asked.set(), real(*a))[1]  # type: ignore[method-assign]
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    process = Process(tmp_path / "up.log", "up", "--model", "hf:a/b", "--port", "0", HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}")
    try:
        assert asked.wait(20)
        process.signal(signal.SIGINT)
        until(lambda: process.popen.poll() is not None, process.describe, 10)
        assert "Traceback" not in process.said
    finally:
        process.end()
        hub.shutdown()
        hub.server_close()


# B7 gateway/server.py:32, cli/cluster.py:49-55: Ctrl-C under an open stream waits for uvicorn and prints its stack


@pytest.mark.real
def test_ctrl_c_under_an_open_stream_ends_it_with_an_error_event(tmp_path: Path) -> None:
    with served(tmp_path, 1, "--grace", "0") as made:
        body = {"prompt": "A story", "max_tokens": 4000, "temperature": 1, "stream": True}
        with made.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            made.head.signal(signal.SIGINT)
            last = list(lines)[-1]
        assert "error" in json.loads(last.removeprefix("data: "))
        made.head.wait()
        assert "Traceback" not in made.head.said, made.head.said


# B8 gateway/openai.py: a lone surrogate is no text, and becomes a 500 without OpenAI's error object


@pytest.mark.parametrize(
    "body",
    ['{"messages": [{"role": "user", "content": "\\ud800"}]}', '{"messages": [{"role": "user", "content": "x"}], "model": "\\ud800"}'],
)
def test_a_lone_surrogate_is_refused(body: str) -> None:
    answer = fetch(create_app(FakeEngine()), "POST", CHAT, content=body.encode())
    assert (answer.status_code, "error" in answer.text) == (400, True)


# B9 scheduler/scheduler.py:345, gateway/answer.py:103: each chunk carries `cached`, and the gateway adds them up


@pytest.mark.real
def test_cached_tokens_are_at_most_the_prompts(tmp_path: Path) -> None:
    with served(tmp_path, 1) as made:
        prompt = "The quick brown fox jumps over the lazy dog. " * 20
        usage = [made.complete(prompt, 8).json()["usage"] for _ in range(2)][1]
        assert 0 < usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


# B10 config.py:169: bool("false") is True; config.py:77: NaN is in every range


@pytest.mark.parametrize(("text", "value"), [("false", False), ("0", False), ("true", True), ("1", True)])
def test_switches_are_read_from_the_environment(text: str, value: bool) -> None:
    assert from_environment(HeadSettings, {}, {"SHOAL_SPREAD": text}).spread is value


def test_a_heartbeat_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError):
        HeadSettings(heartbeat=float("nan"))


# B11 auto.py:98-113: a stream that outlives its model raises RuntimeError from the closed loop


@pytest.mark.real
def test_a_stream_may_be_left_after_its_model_was_closed() -> None:
    with AutoDistributedModel.from_pretrained(MODEL, nodes=1, threads=1, context=256) as model:
        stream = model.stream("Hello", max_tokens=50)
        next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]


# B12 auto.py: structlog unconfigured writes to stdout, into the user's output


@pytest.mark.real
def test_a_library_writes_nothing_to_stdout() -> None:
    script = f"from shoal import AutoDistributedModel\nwith AutoDistributedModel.from_pretrained('{MODEL}', nodes=1, threads=1, context=256): pass"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""


# B13 gateway/answer.py:97-112: an engine's bug ends _follow without a word, and the request waits for ever


def test_an_engines_bug_is_a_500_and_not_a_request_that_hangs() -> None:
    def script(request: Request) -> list[Any]:
        return [TokenChunk(request.id, 5, 65)]  # no such choice

    async def go() -> int:
        async with asyncio.timeout(2):
            import httpx2 as httpx

            transport = httpx.ASGITransport(create_app(FakeEngine(script)), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return (await client.post(COMPLETIONS, json={"prompt": "x"})).status_code

    assert asyncio.run(go()) == 500


# B14 cli: mistakes that are answered with a stack


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "hi", "--temperature", "nan", "--url", "http://127.0.0.1:1"],
        ["run", "hi", "--url", "http://[::bad"],
        ["plan", MODEL, "--node", "1GiB:inf"],
        ["chat", "--url", "http://127.0.0.1:1"],  # stdin is /dev/null: uvloop aborts the process (SIGABRT)
    ],
)
def test_a_mistake_shows_no_stack(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shoal", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 2)


# B15 pipeline/driver.py:59-62: end_choice counts a choice down twice when its last chunk was queued already


def test_ending_a_choice_does_not_end_another() -> None:
    async def go() -> list[int]:
        driver = Driver(Scheduler(Limits(8, 16, 64, 4, 32, 8)), lambda timing: None)
        stream = driver.submit(Request(RequestId("a"), [1, 2, 3], 8, n=2))
        for choice, finish in [(0, None), (0, FinishReason.LENGTH), (1, None), (1, FinishReason.LENGTH)]:
            stream.put(TokenChunk(RequestId("a"), choice, 7, finish=finish))
        seen: list[int] = []
        async with asyncio.timeout(2):
            async for chunk in stream:
                seen.append(chunk.choice)
                if len(seen) == 1:
                    stream.end_choice(0)
        driver.close(ConfigError("over"))
        return seen

    assert asyncio.run(go()).count(1) == 2
