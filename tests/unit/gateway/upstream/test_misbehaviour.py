"""Upstreams that refuse, hang, break off, talk nonsense or are busy: another replica answers as long as nothing was said, and no failure
looks like a success."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest
from structlog.testing import capture_logs

from shoal.errors import NotReady, QueueFull
from shoal.gateway.upstream.listing import Unlisted, listed
from shoal.gateway.upstream.upstream import Upstream
from shoal.gateway.upstream.upstreams import Upstreams
from tests.support.engine import FakeEngine
from tests.support.fake_upstream import DONE, FINISH, USAGE, WHOLE, FakeUpstream, Heard, Say, chunk, said, streamed
from tests.support.forwarding import CHAT, HI, Gateway, over
from tests.support.http import eventually
from tests.support.peers import listener

Answer = Callable[[Heard], Say]

BROKEN: dict[str, Answer] = {
    "an internal error": lambda _: said({"error": {"message": "CUDA"}}, 500),
    "unavailable": lambda _: said(b"<html>nginx</html>", 503),
    "a gateway's error": lambda _: said(b"", 502),
    "it closes without a word": lambda _: Say([None]),
    "it breaks off within its answer": lambda _: Say([b'{"choices": [', None], headers={"content-type": "application/json"}),
    "what it says is not JSON": lambda _: said(b"\x00\xff garbage"),
    "what it says is no object": lambda _: said([1, 2]),
    "what it says is half an object": lambda _: said(b'{"id": 1'),
    "it is silent": lambda _: Say(hang=True),
    "it wants another key": lambda _: said({"error": {"message": "no"}}, 401),
    "its account has no credit": lambda _: said({"error": {"message": "pay"}}, 402),
    "it fails at great length": lambda _: said({"error": {"message": "x" * (1 << 20)}}, 400),
    "it is somewhere else": lambda _: Say([], 307, {"location": "http://127.0.0.1:1/"}),
    "its stream has no event": lambda _: streamed(),
    "its stream breaks off before an event": lambda _: streamed(b"data: {", None),
    "its stream begins with garbage": lambda _: streamed(b"data: {nonsense\n\n"),
    "its stream has comments alone": lambda _: streamed(b": ping\n\n", b": ping\n\n", None),
    "its stream begins with an error": lambda _: streamed(b": ping\n\n", b'data: {"error": {"message": "CUDA"}}\n\n', DONE),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", BROKEN)
def test_another_upstream_answers_where_nothing_was_said(case: str, stream: bool) -> None:
    async def work(gate: Gateway, bad: FakeUpstream, good: FakeUpstream) -> None:
        for _ in range(2):  # one of them asks the broken one first
            if stream:
                status, text = await gate.stream()
                assert status == 200 and text.endswith("data: [DONE]\n\n") and "error" not in text
            else:
                answer = await gate.chat()
                assert answer.status_code == 200 and answer.json() == WHOLE
        assert len(good.heard) == 2 and 1 <= len(bad.heard) <= 2
        assert {ending for url, ending, _, _ in gate.engine.asked_elsewhere if url == bad.url} == {"failed"}
        assert sum(prompt for _, _, prompt, _ in gate.engine.asked_elsewhere) == 22, "what failed costs nothing"

    over(work, FakeUpstream(answer=BROKEN[case]), FakeUpstream(), upstream_wait=2, balance="round-robin")


@pytest.mark.parametrize("case", BROKEN)
def test_alone_it_is_an_error_that_says_whose_fault_it_is(case: str) -> None:
    async def work(gate: Gateway, bad: FakeUpstream) -> None:
        answer = await gate.chat()
        assert answer.status_code == 502, answer.text
        error = answer.json()["error"]
        assert error["code"] == "upstream_failed" and "the model 'far'" in error["message"] and bad.url not in answer.text
        status, text = await gate.stream()
        assert status == 502 and json.loads(text)["error"]["code"] == "upstream_failed"
        assert ("chat", "502", 0) in gate.engine.observed

    over(work, FakeUpstream(answer=BROKEN[case]), upstream_wait=2)


def test_one_that_is_not_there_is_followed_by_one_that_is() -> None:
    async def work(gate: Gateway, gone: FakeUpstream, good: FakeUpstream) -> None:
        await gone.stop()
        for _ in range(3):
            assert (await gate.chat()).status_code == 200
        await gate.until(lambda state: "cannot be reached" in state, gone.url)
        assert len(good.heard) == 3
        await gone.start()
        await gate.until(lambda state: not state, gone.url)
        await eventually_asked(gate, gone)

    async def eventually_asked(gate: Gateway, gone: FakeUpstream) -> None:
        for _ in range(100):
            if gone.heard:
                return
            assert (await gate.chat()).status_code == 200
        raise AssertionError("it gets no requests")

    over(work, FakeUpstream(), FakeUpstream(), balance="round-robin")


@pytest.mark.parametrize(
    ("path", "begun"),
    [
        (CHAT, [chunk("one")]),
        ("/v1/completions", [b'data: {"choices":[{"index":0,"text":"one","finish_reason":null}]}\n\n']),
        (
            "/v1/messages",
            [b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}\n\n'],
        ),
        (
            "/v1/responses",
            [
                b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"r1","status":"in_progress"}}\n\n',
                b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"one","sequence_number":1}\n\n',
            ],
        ),
    ],
)
@pytest.mark.parametrize(
    "end", [[None], [], [b"data: {garbage\n\n"], [b"data: {half"], [b"<html>\n\n"]], ids=["broken", "ended", "garbage", "half", "page"]
)
def test_a_stream_that_breaks_off_ends_with_an_error(path: str, begun: list[bytes], end: list[Any]) -> None:
    async def work(gate: Gateway, bad: FakeUpstream, other: FakeUpstream) -> None:
        status, text = await gate.stream(path=path)
        assert status == 200 and text.startswith(b"".join(begun).decode()) and "[DONE]" not in text and "garbage" not in text
        last = [line for line in text.split("\n\n") if line][-1]
        data = json.loads(last.partition("data: ")[2])
        if path == "/v1/responses":
            assert data["type"] == "response.failed" and data["response"] == {
                "id": "r1", "status": "failed", "error": {"code": "server_error", "message": data["response"]["error"]["message"]},
            }  # fmt: skip
            assert data["sequence_number"] == 3 and "event: error" in text
        elif path == "/v1/messages":
            assert last.startswith("event: error\n") and data["type"] == "error" and data["error"]["type"] == "api_error"
        else:
            assert data["error"]["code"] == "upstream_failed"
        ((_, ending, prompt, completion),) = gate.engine.asked_elsewhere
        assert ending == "failed" and prompt > 0 and completion > 0, "what was said is charged"
        assert not other.heard, "what was said is not said again by another one"

    bad = FakeUpstream(answer=lambda _: streamed(*begun, *end))
    other = FakeUpstream(models=[{"id": "other"}])
    over(work, bad, other)


def test_a_stream_that_falls_silent_ends_with_an_error() -> None:
    async def work(gate: Gateway, bad: FakeUpstream) -> None:
        _, text = await gate.stream()
        assert text.startswith(chunk("one").decode()) and "silent for too long" in text and "[DONE]" not in text
        await bad.heard[0].left.wait()

    over(work, FakeUpstream(answer=lambda _: streamed(chunk("one"), asyncio.Event())), upstream_wait=2)


def test_an_error_that_the_upstream_tells_is_passed_on_once() -> None:
    error = b'data: {"error": {"message": "out of memory", "type": "server_error", "param": null, "code": null}}\n\n'

    async def work(gate: Gateway, bad: FakeUpstream) -> None:
        _, text = await gate.stream()
        assert text.encode() == chunk("one") + error
        assert gate.engine.asked_elsewhere[0][1] == "failed"

    over(work, FakeUpstream(answer=lambda _: streamed(chunk("one"), error)))


def test_a_stream_may_end_with_the_reason_alone() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        _, text = await gate.stream()
        assert text.encode() == chunk("one") + FINISH and gate.engine.asked_elsewhere[0][1] == "served"

    over(work, FakeUpstream(answer=lambda _: streamed(chunk("one"), FINISH)))


def test_what_the_upstream_does_after_the_end_keeps_nobody_waiting() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        _, text = await gate.stream()
        assert text.endswith("[DONE]\n\n") and gate.engine.asked_elsewhere == [(far.url, "served", 11, 3)]

    over(work, FakeUpstream(answer=lambda _: streamed(chunk("one"), FINISH, USAGE, DONE, asyncio.Event())))


def test_an_answer_that_is_too_large_for_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(gate: Gateway, bad: FakeUpstream, good: FakeUpstream) -> None:
        for _ in range(2):
            assert (await gate.chat()).json() == WHOLE
        assert bad.heard

    monkeypatch.setattr("shoal.gateway.upstream.remote.LARGEST", 1 << 20)
    over(work, FakeUpstream(answer=lambda _: said({**WHOLE, "x": "x" * (1 << 20)})), FakeUpstream(), balance="round-robin")


def test_a_large_answer_comes_whole_and_its_usage_is_counted() -> None:
    large = {"data": [{"embedding": [0.25] * 1000, "index": i} for i in range(1000)], **WHOLE}

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        assert (await gate.chat()).json() == large
        assert gate.engine.asked_elsewhere == [(far.url, "served", 11, 3)]

    over(work, FakeUpstream(answer=lambda _: said(large)))


def test_a_stream_of_which_one_choice_is_missing_is_broken() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        _, text = await gate.stream(n=2)
        assert "ended before the answer did" in text and gate.engine.asked_elsewhere[0][1] == "failed"

    over(work, FakeUpstream(answer=lambda _: streamed(chunk("one"), FINISH)))


def test_comments_before_the_first_event_are_not_kept_for_ever() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        _, text = await gate.stream()
        assert len(text) < 200_000 and text.startswith(": x") and text.endswith("[DONE]\n\n")

    over(work, FakeUpstream(answer=lambda _: streamed(*[b": " + b"x" * 60_000 + b"\n\n"] * 10, chunk("one"), FINISH, DONE)))


def test_the_key_that_an_upstream_repeats_is_not_logged() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        with capture_logs() as logs:
            assert (await gate.chat()).status_code == 502
            assert (await gate.stream())[0] == 502
        assert len(logs) == 2 and "of-ours" not in str(logs) and str(logs).count("[key]") == 2

    def repeating(heard: Heard) -> Say:
        stream = heard.body.get("stream") is True  # whose log begins with a sentence; in both, what is logged would end within the key
        message = {"error": {"message": "x" * (310 if stream else 350) + " wrong: sk-1234567890-of-ours-1234567890"}}
        return streamed(b"data: " + json.dumps(message).encode() + b"\n\n") if stream else said(message, 401)

    over(work, FakeUpstream(answer=repeating), keys={"": "sk-1234567890-of-ours-1234567890"})


# Busy


def test_a_busy_one_is_followed_by_another_and_left_alone() -> None:
    async def work(gate: Gateway, busy: FakeUpstream, good: FakeUpstream) -> None:
        for _ in range(6):
            assert (await gate.chat()).status_code == 200
        assert len(busy.heard) == 1 and len(good.heard) == 6
        assert (busy.url, "busy", 0, 0) in gate.engine.asked_elsewhere

    over(work, FakeUpstream(answer=lambda _: said({"error": {}}, 429, retry_after="30")), FakeUpstream(), balance="round-robin")


def test_where_all_are_busy_the_client_is_told_when_to_come_back() -> None:
    async def work(gate: Gateway, busy: FakeUpstream) -> None:
        for _ in range(3):
            answer = await gate.chat()
            assert answer.status_code == 429 and answer.json()["error"]["code"] == "upstream_busy"
            assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert len(busy.heard) == 1

    over(work, FakeUpstream(answer=lambda _: said({"error": {}}, 429, retry_after="30")))


# This server as one of the replicas


@pytest.mark.parametrize("error", [NotReady("no route"), QueueFull(3, 3)])
def test_what_this_server_refuses_for_now_goes_to_an_upstream(error: Exception) -> None:
    engine = FakeEngine()
    engine.refusal = error  # pyright: ignore[reportAttributeAccessIssue]

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        for _ in range(3):
            assert (await gate.chat("fake")).json() == WHOLE
        assert len(far.heard) == 3

    over(work, FakeUpstream(models=[{"id": "fake"}]), own=True, engine=engine)


def test_a_model_that_is_not_served_here_now_is_served_by_the_upstream() -> None:
    engine = FakeEngine()
    engine.state = "waiting for nodes"

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        assert (await gate.http.get("/health/ready")).status_code == 200
        assert (await gate.chat("fake")).json() == WHOLE
        await far.stop()
        await gate.until(bool)
        assert (await gate.http.get("/health/ready")).status_code == 503

    over(work, FakeUpstream(models=[{"id": "fake"}]), own=True, engine=engine)


def test_this_server_answers_where_the_upstream_fails() -> None:
    async def work(gate: Gateway, bad: FakeUpstream) -> None:
        for _ in range(2):
            answer = await gate.chat("fake")
            assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        assert len(bad.heard) == 1

    over(work, FakeUpstream(models=[{"id": "fake"}], answer=BROKEN["an internal error"]), own=True, balance="round-robin")


def test_where_neither_can_this_servers_own_words_are_kept() -> None:
    engine = FakeEngine()
    engine.refusal = QueueFull(3, 3)

    async def work(gate: Gateway, bad: FakeUpstream) -> None:
        answer = await gate.chat("fake")
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "queue_full" and answer.headers["retry-after"]

    over(work, FakeUpstream(models=[{"id": "fake"}], answer=BROKEN["an internal error"]), own=True, engine=engine)


# Health


def test_one_that_fails_again_and_again_gets_no_requests_and_says_so() -> None:
    async def work(gate: Gateway, bad: FakeUpstream, good: FakeUpstream) -> None:
        for _ in range(40):
            assert (await gate.chat()).status_code in (200, 502)  # there are fewer retries than failures
        failed = len(bad.heard)
        assert failed < 20
        state = gate.upstreams.all[bad.url].state
        assert "far" in state and "failed" in state
        health = (await gate.http.get("/health")).json()
        assert [each["ready"] for each in health["upstreams"]] == [False, True]
        assert any(view.url == bad.url and view.state for view in gate.engine.views)

    over(work, FakeUpstream(answer=BROKEN["an internal error"]), FakeUpstream(), balance="round-robin")


@pytest.mark.parametrize(
    ("listing", "why"),
    [
        (said({"nothing": 1}), "no list of models"),
        (said(b"garbage"), "no list of models"),
        (said({"error": {}}, 401), "another key"),
        (said({}, 404), "404"),
        (Say([None]), "cannot be reached"),
    ],
)
def test_one_that_does_not_say_what_it_has_is_told_once(listing: Say, why: str) -> None:
    async def work(gate: Gateway, odd: FakeUpstream) -> None:
        await gate.until(lambda state: why in state)
        looks = len(odd.looks)
        await eventually(lambda: len(odd.looks) > looks + 3)
        assert len(gate.engine.views) == 1
        answer = await gate.chat()
        assert answer.status_code == 503 and "not all upstreams" in answer.text
        assert (await gate.http.get("/health/ready")).status_code == 503
        odd.models = [{"id": "far"}]
        await gate.until(lambda state: not state)
        assert (await gate.chat()).status_code == 200 and [view.state for view in gate.engine.views][1:] == [""]

    over(work, FakeUpstream(models=listing), ready=False)


def test_one_that_is_never_silent_and_never_done_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\n \r\n")
            await asyncio.sleep(0.01)

    async def go() -> None:
        async with listener(drip) as port, httpx.AsyncClient(trust_env=False) as client:
            upstream = Upstream(f"http://127.0.0.1:{port}/v1")
            async with asyncio.timeout(60):
                with pytest.raises(Unlisted, match="does not say all") as caught:
                    await listed(client, upstream, "shoal-0")
            assert not caught.value.sure

    monkeypatch.setattr("shoal.gateway.upstream.listing._LONGEST", 0.5)
    asyncio.run(go())


def test_models_that_come_and_go_are_followed() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        far.models = [{"id": "new"}]
        await eventually(lambda: gate.upstreams.known("new"))
        assert (await gate.chat("new")).status_code == 200 and (await gate.chat("far")).status_code == 404

    over(work, FakeUpstream())


@pytest.mark.parametrize(
    "missing",
    [
        {"error": {"message": "unknown model", "code": "model_not_found"}},
        {"error": {"message": "there is no such thing", "param": "model", "code": 404}},
        {"object": "error", "message": "The model `far` does not exist.", "code": 404},
    ],
)
def test_a_model_that_the_upstream_has_no_more_is_asked_for_elsewhere(missing: dict[str, Any]) -> None:
    async def work(gate: Gateway, forgetful: FakeUpstream, good: FakeUpstream) -> None:
        for _ in range(2):
            assert (await gate.chat()).status_code == 200
        assert all(ending != "failed" for _, ending, _, _ in gate.engine.asked_elsewhere)
        assert not forgetful.heard or not gate.upstreams.all[forgetful.url].lacking

    over(work, FakeUpstream(answer=lambda _: said(missing, 404)), FakeUpstream(), balance="round-robin")


def test_the_product_looks_every_few_seconds() -> None:
    assert Upstreams.__init__.__defaults__ == ("", 5.0)


# Loops


def test_a_request_that_was_here_before_is_refused() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        body = {"model": "far", "messages": HI}
        answer = await gate.http.post(CHAT, json=body, headers={"via": f"1.1 somebody, 1.1 {gate.upstreams.id}"})
        assert answer.status_code == 508 and answer.json()["error"]["code"] == "loop_detected" and not far.heard
        long = ", ".join(f"1.1 shoal-{number:012x}" for number in range(16))
        assert (await gate.http.post(CHAT, json=body, headers={"via": long})).status_code == 508
        assert (await gate.http.post(CHAT, json=body, headers={"via": "1.1 nginx"})).status_code == 200
        assert far.heard[0].headers["via"] == f"1.1 nginx, 1.1 {gate.upstreams.id}"

    over(work, FakeUpstream())


def test_a_request_that_was_here_before_is_answered_by_its_own_model() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        body = {"model": "fake", "messages": HI}
        for _ in range(3):
            answer = await gate.http.post(CHAT, json=body, headers={"via": f"1.1 {gate.upstreams.id}"})
            assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        assert not far.heard

    over(work, FakeUpstream(models=[{"id": "fake"}]), own=True)


def test_a_request_does_not_go_back_to_where_it_came_from() -> None:
    sender = "shoal-0123456789ab"

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.http.post(CHAT, json={"model": "far", "messages": HI}, headers={"via": f"1.1 {sender}"})
        assert answer.status_code == 503 and not far.heard

    over(work, FakeUpstream(models=[{"id": "far", "via": [sender]}]))


def test_two_servers_that_are_upstreams_of_each_other_offer_what_one_of_them_has() -> None:
    """And no longer than that one has it."""

    async def work(gate: Gateway, other: FakeUpstream) -> None:
        assert [*gate.upstreams.states] == ["theirs"], "what it has from here is not offered by it"
        card = (await gate.http.get("/v1/models/theirs")).json()
        assert card["via"] == [gate.upstreams.id, "shoal-0123456789ab"]

    other = FakeUpstream()

    async def prepared(gate: Gateway, other: FakeUpstream) -> None:
        other.models = [
            {"id": "ours", "via": ["shoal-0123456789ab", gate.upstreams.id]},
            {"id": "theirs", "via": ["shoal-0123456789ab"]},
        ]
        await eventually(lambda: [*gate.upstreams.states] == ["theirs"])
        await work(gate, other)

    over(prepared, other)


def test_something_else_that_is_missing_is_the_clients_business() -> None:
    missing = {"error": {"message": "there is no response r1", "type": "invalid_request_error", "param": "id", "code": "answer_not_found"}}

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        for _ in range(2):
            answer = await gate.http.post("/v1/responses", json={"model": "far", "input": "a", "previous_response_id": "r1"})
            assert answer.status_code == 404 and answer.json() == missing
        assert len(far.heard) == 2

    over(work, FakeUpstream(answer=lambda _: said(missing, 404)))


NUMBERED: list[dict[str, Any]] = [
    {"error": {"message": "there is no file f1", "type": "invalid_request_error", "param": "input", "code": 404}},
    {"type": "error", "error": {"type": "not_found_error", "message": "there is no file f1"}},
]


@pytest.mark.parametrize("missing", NUMBERED)
def test_what_is_missing_is_the_clients_business_without_a_code_too(missing: dict[str, Any]) -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        for _ in range(2):
            answer = await gate.http.post("/v1/messages", json={"model": "far", "messages": HI})
            assert answer.status_code == 404 and answer.json() == missing
        assert len(far.heard) == 2

    over(work, FakeUpstream(answer=lambda _: said(missing, 404)))


@pytest.mark.parametrize("named", [{"previous_response_id": "r1"}, {"conversation": {"id": "c1"}}])
def test_a_stored_object_that_is_missing_takes_no_endpoint_from_others(named: dict[str, Any]) -> None:
    missing = {"error": {"message": "Response with id 'r1' not found.", "type": "invalid_request_error", "param": None, "code": 404}}

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.http.post("/v1/responses", json={"model": "far", "input": "a", **named})
        assert answer.status_code == 404 and answer.json() == missing
        assert (await gate.http.post("/v1/responses", json={"model": "far", "input": "a"})).json() == WHOLE

    def kept(heard: Heard) -> Say:
        return said(missing, 404) if any(name in heard.body for name in named) else said(WHOLE)

    over(work, FakeUpstream(answer=kept))


def test_a_stored_object_is_found_where_it_is() -> None:
    async def work(gate: Gateway, without: FakeUpstream, having: FakeUpstream) -> None:
        for _ in range(2):
            body = {"model": "far", "input": "a", "previous_response_id": "r1"}
            assert (await gate.http.post("/v1/responses", json=body)).json() == WHOLE
        assert len(having.heard) == 2 and not gate.upstreams.all[without.url].lacking

    without = FakeUpstream(answer=lambda _: said({"error": {"message": "not found", "code": 404}}, 404))
    over(work, without, FakeUpstream(), balance="round-robin")


def test_a_model_that_is_gone_everywhere_is_told() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.chat()
        assert answer.status_code == 503 and "not served any more" in answer.text

    over(work, FakeUpstream(answer=lambda _: said({"error": {"message": "no", "code": "model_not_found"}}, 404)))
