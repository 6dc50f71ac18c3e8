"""Copies come and go with the load, as whoever runs `shoal serve` sees it: real processes, trained weights, real receivers."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from shoal.serving.traffic_history import TrafficHistory
from tests.support.cluster import MODEL, Cluster, cluster, free_port, until
from tests.support.webhook_receiver import Delivery, Receiver, receiver

pytestmark = [pytest.mark.real, pytest.mark.slow]

SECRET = f"whsec_{base64.b64encode(b'0123456789abcdef0123456789abcdef').decode()}"
QUICK = [
    *("--slots", "4", "--context", "512", "--scale-up-after", "1", "--scale-up-cooldown", "1"),
    *("--scale-down-after", "4", "--scale-down-cooldown", "2"),
    *("--first-token-target", "600"),  # that of the last minute outlasts the load here
]
PROMPTS = ["The capital of France is", "1, 2, 3,", "A story about the sea:", "Once upon a time", "Water boils at", "The moon is"]
TOKENS = 120


def fleet(made: Cluster) -> dict[str, Any]:
    """What `shoal fleet plan --json` says of the model."""
    asked = made.start("fleet", "plan", "--json", "--url", made.url)
    assert asked.wait() == 0, asked.describe()
    found = json.loads(asked.said[asked.said.index("{") :])
    return {"on": found["on"], **next(iter(found["models"]), {})}


def events(made: Cluster, kind: str) -> list[str]:
    return [event["message"] for event in made.http.get("/operator/events", params={"kind": kind, "limit": 10_000}).json()["events"]]


def copies(made: Cluster) -> dict[str, Any]:
    """Of the model, as the operator's API lists it."""
    (loaded,) = made.http.get("/operator/models").json()["loaded"]
    return loaded


class Load:
    """Keeps asking for answers, each of which must be what it was when nothing happened."""

    def __init__(self, made: Cluster, wanted: dict[str, str], clients: int = 6) -> None:
        self._made, self._wanted, self._clients = made, wanted, clients
        self._over = threading.Event()
        self.answers = 0

    def _ask(self, number: int) -> None:
        while not self._over.is_set():
            prompt = PROMPTS[number % len(PROMPTS)]
            assert streamed(self._made, prompt) == self._wanted[prompt]
            self.answers += 1

    @contextmanager
    def running(self) -> Generator[list[Future[None]]]:
        with ThreadPoolExecutor(self._clients) as pool:
            asked = [pool.submit(self._ask, number) for number in range(self._clients)]
            try:
                yield asked
            finally:
                self._over.set()
            for one in asked:
                one.result()


def streamed(made: Cluster, prompt: str) -> str:
    """The answer, from its events; none may be an error."""
    body = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    text = ""
    with made.http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                text += "".join(choice["text"] for choice in event["choices"])
    return text


def wanted(made: Cluster) -> dict[str, str]:
    return {prompt: streamed(made, prompt) for prompt in PROMPTS}


class Hook:
    """A receiver that runs beside the test. answers: as of webhook_receiver.Receiver."""

    def __init__(self, *answers: str) -> None:
        self._answers = answers
        self._ready, self._end = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.there = Receiver()

    @property
    def url(self) -> str:
        return self.there.url

    @property
    def deliveries(self) -> list[Delivery]:
        return [*self.there.deliveries]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with receiver(*self._answers) as self.there:
            self._ready.set()
            await self._end.wait()

    def __enter__(self) -> Hook:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """A file."""
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        yield made


def until_serving(made: Cluster, count: int, also: Callable[[], object] = lambda: None) -> None:
    def there() -> bool:
        also()
        found = copies(made)
        return (found["serving"], found["replicas"]) == (count, count)

    until(there, made.story, bound=240, every=0.2)


def test_load_adds_a_copy_and_quiet_takes_it_away_while_every_stream_says_what_it_would_anyway(made: Cluster) -> None:
    made.serve("--replicas-max", "2", *QUICK)
    made.join("--name", "a")
    made.join("--name", "b")
    made.until_ready()
    before = wanted(made)
    until_serving(made, 1)
    assert fleet(made)["on"] and fleet(made)["planned"] == 1
    load = Load(made, before)
    with load.running() as asked:

        def well() -> None:
            for one in asked:
                assert not one.done(), one.result()

        until_serving(made, 2, well)
        seen = load.answers
        until(lambda: load.answers >= seen + 4, made.story, bound=240)
        shown = fleet(made)
        assert (shown["serving"], shown["planned"]) == (2, 2) and {signal["name"] for signal in shown["signals"]} >= {"queue", "slots"}
        assert made.total("replicas", model=MODEL, state="serving") == 2
    last = threading.Thread(target=streamed, args=(made, PROMPTS[0]))
    last.start()
    until_serving(made, 1)
    last.join()
    said = events(made, "scaled")
    assert any(f"{MODEL}/2 is added on" in line for line in said) and any("is gone" in line for line in said), said
    started, stopped = (made.total("scaling_total", model=MODEL, action=action) for action in ("start", "stop"))
    assert started == stopped >= 1, said
    until(lambda: (shown := fleet(made))["serving"] == shown["wanted"] == 1, made.story, every=1)  # by the load of the last look
    assert wanted(made) == before
    made.until_idle()


def test_what_finds_no_room_is_asked_for_by_a_signed_webhook_and_taken_back(made: Cluster, secret: str) -> None:
    with Hook("503", "204") as hook:
        made.serve(*("--replicas-max", "2", "--more-nodes", "webhook", "--webhook", hook.url, "--webhook-secret-file", secret), *QUICK)
        made.join("--name", "a")
        made.until_ready()
        before = wanted(made)
        with Load(made, before).running():
            until(lambda: len(hook.deliveries) >= 2, made.story, bound=240)
            refused, told = hook.deliveries[:2]
            assert refused.headers["webhook-id"] == told.headers["webhook-id"], "it is the same, tried again"
            body = Webhook(SECRET).verify(told.body, told.headers)
            assert body["type"] == "shoal.nodes.wanted"
            assert {name: body["data"][name] for name in ("model", "nodes", "replicas")} == {"model": MODEL, "nodes": 1, "replicas": 1}
            assert [action["type"] for action in fleet(made)["actions"]] == ["ask"]
            assert any("1 node is asked for (webhook)" in line for line in events(made, "short"))
            made.join("--name", "b")
            until_serving(made, 2)
        until(lambda: json.loads(hook.deliveries[-1].body)["data"]["nodes"] == 0, made.story, bound=240)
        log = made.head.said
        assert SECRET not in log and "hush" not in log


def test_a_receiver_that_hangs_holds_nothing_up(made: Cluster, secret: str) -> None:
    with Hook("hang") as hook:
        made.serve(*("--replicas-max", "3", "--more-nodes", "webhook", "--webhook", hook.url, "--webhook-secret-file", secret), *QUICK)
        made.join("--name", "a")
        made.join("--name", "b")
        made.until_ready()
        before = wanted(made)
        load = Load(made, before, 16)
        with load.running():
            until(lambda: hook.deliveries, made.story, bound=240)
            until_serving(made, 2)
            seen = load.answers
            until(lambda: load.answers >= seen + 6, made.story, bound=240)
            assert fleet(made)["serving"] == 2


def test_a_model_that_nobody_asks_for_goes_and_comes_when_it_is_asked_for(made: Cluster) -> None:
    made.up("--nodes", "1", "--replicas-min", "0", "--scale-idle", "3", *QUICK)
    made.until_ready()
    before = streamed(made, PROMPTS[0])
    until(lambda: not made.http.get("/operator/models").json()["loaded"], made.story, bound=240)
    shown = fleet(made)
    assert (shown["model"], shown["serving"], shown["wanted"]) == (MODEL, 0, 0)
    assert [model["id"] for model in made.http.get("/v1/models").json()["data"]] == [MODEL], "it can still be asked for"
    assert streamed(made, PROMPTS[0]) == before
    assert made.answers("/health/ready")


def test_without_bounds_the_plan_says_what_the_load_asks_for_and_nothing_is_scaled(made: Cluster) -> None:
    made.serve("--slots", "2", "--context", "512")
    made.join("--name", "a")
    made.until_ready()
    shown = fleet(made)
    assert not shown["on"] and (shown["serving"], shown["planned"], shown["actions"]) == (1, 1, [])
    asked = made.start("fleet", "plan", "--url", made.url)
    assert asked.wait() == 0
    assert MODEL in asked.said and "nothing is scaled here; --replicas-max" in asked.said
    assert "shoal_scaling_total" not in made.http.get("/metrics").text
    loading = made.start("models", "load", MODEL, "--replicas", "2", "--no-wait", "--url", made.url)
    assert loading.wait() == 0 and "is being loaded" in loading.said
    time.sleep(1)
    assert copies(made)["replicas"] == 2, "nobody takes it away"


def test_the_bounds_hold_for_an_operator_too(made: Cluster) -> None:
    made.serve("--replicas-max", "2", *QUICK)
    made.join("--name", "a")
    made.until_ready()
    loading = made.start("models", "load", MODEL, "--replicas", "5", "--no-wait", "--url", made.url)
    assert loading.wait() == 0, loading.describe()
    assert "2 replicas, not 5: --replicas-min is 1, --replicas-max 2" in " ".join(loading.said.split())


def test_requests_are_kept_for_the_forecast(made: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("statsmodels")
    made.serve("--replicas-max", "2", "--forecast", "--data", str(tmp_path / "data"), *QUICK)
    made.join("--name", "a")
    made.until_ready()
    for _ in range(3):
        streamed(made, PROMPTS[0])
    assert fleet(made)["forecast"] == "there is no forecast yet"

    def kept() -> int:
        history = TrafficHistory(tmp_path / "data")
        try:
            return sum(count or 0 for count in history.minutes(MODEL, int(time.time()) // 60 + 1))
        finally:
            history.close()

    until(lambda: kept() == 3, made.story, bound=180, every=1)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--replicas", "4", "--replicas-max", "3"], "--replicas 4 is not within --replicas-min 1 and --replicas-max 3"),
        (["--replicas-min", "3", "--replicas-max", "2"], "--replicas-min 3 is more than --replicas-max 2"),
        (["--forecast"], "--forecast is for models that are scaled"),
        (["--replicas-max", "2", "--more-nodes", "webhook"], "--more-nodes webhook and --webhook URL belong together"),
        (
            ["--replicas-max", "2", "--more-nodes", "webhook", "--webhook", "http://127.0.0.1:9/x"],
            "webhooks are signed: give --webhook-secret-file FILE",
        ),
        (["--replicas-max", "2", "--more-nodes", "kubernetes", "--stateful-set", "x"], "works in a pod of Kubernetes alone"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(made: Cluster, flags: list[str], why: str) -> None:
    process = made.serve(*flags)
    assert process.wait() == 2, process.describe()
    assert why in " ".join(process.said.split()) and "Traceback" not in process.said


def test_no_server_is_one_clear_line(made: Cluster) -> None:
    asked = made.start("fleet", "plan", "--url", f"http://127.0.0.1:{free_port()}")
    assert asked.wait() == 1
    assert "does not answer" in asked.said and "is `shoal up` or `shoal serve` running there?" in " ".join(asked.said.split())
