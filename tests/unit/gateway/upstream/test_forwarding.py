"""Requests go on to another server as they were written, and its answers come back as they are said."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx
import pytest

from shoal.config import Balancing
from shoal.gateway.upstream.forwarding import PATHS
from shoal.serving.balancing.inquiry import Inquiry
from shoal.serving.balancing.text_pieces import inquiry_of
from tests.support.engine import FakeEngine, says
from tests.support.fake_upstream import CARD, DONE, FINISH, USAGE, WHOLE, FakeUpstream, Heard, Say, chunk, said, streamed
from tests.support.forwarding import CHAT, HI, Gateway, over
from tests.support.http import eventually


def error_of(answer: httpx.Response) -> dict[str, Any]:
    return answer.json()["error"]


def test_an_answer_comes_back_as_it_was_said() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.chat()
        assert answer.status_code == 200 and answer.json() == WHOLE
        assert answer.headers["x-request-id"] == "theirs"
        assert gate.engine.asked_elsewhere == [(far.url, "served", 11, 3)] and not gate.engine.streams

    over(work, FakeUpstream())


def test_a_request_keeps_its_bytes_and_loses_its_key() -> None:
    raw = b'{ "model":"far", "messages" : [], "made_up": 1.0e2, "big": 12345678901234567890 }'
    sent = {"content-type": "application/json", "authorization": "Bearer theirs-alone", "x-api-key": "secret", "cookie": "a=b"}

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.http.post(CHAT, content=raw, headers=sent)
        assert answer.status_code == 200
        (heard,) = far.heard
        assert heard.raw == raw and heard.path == CHAT
        assert "secret" not in str(heard.headers) and "theirs-alone" not in str(heard.headers) and "cookie" not in heard.headers

    over(work, FakeUpstream())


def test_the_upstreams_own_key_is_sent_to_it_alone() -> None:
    async def work(gate: Gateway, one: FakeUpstream, two: FakeUpstream) -> None:
        assert (await gate.chat("far")).status_code == (await gate.chat("other")).status_code == 200
        assert {heard.headers.get("authorization") for heard in [*one.heard, *one.looks]} == {"Bearer k1"}
        assert {heard.headers.get("authorization") for heard in [*two.heard, *two.looks]} == {"Bearer rest"}

    one, two = FakeUpstream(), FakeUpstream(models=[{"id": "other"}])

    async def with_keys(gate: Gateway, *upstreams: FakeUpstream) -> None:
        await work(gate, one, two)

    class Keys(dict[str, str]):
        """The port is known when the server has started."""

        def get(self, url: str, default: Any = None) -> Any:
            return "k1" if url == one.url else "rest" if url == "" else default

    over(with_keys, one, two, keys=Keys())


def test_cookies_of_an_upstream_are_kept_for_nobody() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        for _ in range(2):
            answer = await gate.chat()
            assert answer.status_code == 200 and "set-cookie" not in answer.headers
        assert not any("cookie" in heard.headers for heard in [*far.heard, *far.looks])

    over(work, FakeUpstream(answer=lambda _: said(WHOLE, set_cookie="session=of-the-first; Path=/")))


@pytest.mark.parametrize("balance", [*Balancing])
def test_prompts_are_cut_into_pieces_for_those_alone_who_look_at_them(balance: Balancing, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[Any] = []

    def counted(body: Any) -> Inquiry:
        cut.append(body)
        return inquiry_of(body)

    async def work(gate: Gateway, one: FakeUpstream, two: FakeUpstream) -> None:
        assert (await gate.chat()).status_code == 200
        assert len(cut) == (balance in (Balancing.PREFIX, Balancing.SESSION_HASH))

    monkeypatch.setattr("shoal.gateway.upstream.forwarding.inquiry_of", counted)
    over(work, FakeUpstream(), FakeUpstream(), balance=balance)


def test_an_alias_is_sent_as_the_model_that_it_stands_for() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        assert (await gate.chat("gpt-4o", made_up=[1, {"b": 2.50}])).status_code == 200
        (heard,) = far.heard
        assert heard.body == {"model": "far", "messages": HI, "made_up": [1, {"b": 2.5}]} and b"2.5" in heard.raw

    over(work, FakeUpstream(), aliases={"gpt-4o": "far"})


def test_the_first_model_is_meant_where_none_is_named() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        assert (await gate.chat(None)).json() == WHOLE
        assert far.heard[0].body["model"] == "far"

    over(work, FakeUpstream())


def test_models_of_all_are_listed_with_their_context() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        cards = {card["id"]: card for card in (await gate.http.get("/v1/models")).json()["data"]}
        assert [*cards] == ["fake", "far"] and cards["far"]["max_model_len"] == 777
        assert [card["via"] for card in cards.values()] == [[gate.upstreams.id]] * 2
        assert (await gate.http.get("/v1/models/far")).json()["id"] == "far"
        health = (await gate.http.get("/health")).json()
        assert health["models"] == [{"name": name, "ready": True, "reason": ""} for name in ("fake", "far")]
        assert health["upstreams"] == [{"url": far.url, "ready": True, "reason": "", "models": ["far"]}]
        unknown = await gate.chat("nobody's")
        assert unknown.status_code == 404 and "far" in unknown.text

    over(work, FakeUpstream(), own=True)


def test_without_upstreams_nothing_tells_of_them() -> None:
    async def work(gate: Gateway) -> None:
        assert "upstreams" not in (await gate.http.get("/health")).json()

    over(work, own=True)


def test_its_own_models_are_answered_here() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.chat("fake")
        assert answer.json()["choices"][0]["message"]["content"] == "Hello" and not far.heard
        _, text = await gate.stream("fake")
        assert text.endswith("data: [DONE]\n\n")
        assert (await gate.http.post(CHAT, content=b"{")).status_code == 400
        assert (await gate.http.post(CHAT, json={"model": 5, "messages": HI})).status_code == 400
        assert not gate.engine.asked_elsewhere

    over(work, FakeUpstream(), own=True)


def test_endpoints_that_go_nowhere_say_so() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.http.post("/v1/tokenize", json={"model": "far", "prompt": "a"})
        assert answer.status_code == 503 and "served by other servers" in answer.text and not far.heard

    over(work, FakeUpstream(), own=True)


def test_a_stream_is_passed_on_as_it_comes() -> None:
    more = asyncio.Event()
    far = FakeUpstream(answer=lambda _: streamed(b": ping\n\n", chunk("one"), more, chunk("two"), FINISH, USAGE, DONE))

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        body = {"model": "far", "messages": HI, "stream": True, "stream_options": {"include_usage": True}}
        async with gate.http.stream("POST", CHAT, json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream") and answer.headers["x-request-id"] == "theirs"
            pieces = answer.aiter_bytes()
            early = b""
            while b"one" not in early:
                early += await anext(pieces)
            assert b"two" not in early
            more.set()
            text = early + b"".join([piece async for piece in pieces])
        assert text == b": ping\n\n" + chunk("one") + chunk("two") + FINISH + USAGE + DONE
        assert far.heard[0].body == body and gate.engine.asked_elsewhere == [(far.url, "served", 11, 3)]

    over(work, far)


def test_usage_is_asked_for_and_not_shown_to_a_client_that_did_not_ask() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        _, text = await gate.stream(stream_options={"made_up": True})
        assert text.encode() == chunk("far ") + chunk("away") + FINISH + DONE
        assert far.heard[0].body["stream_options"] == {"made_up": True, "include_usage": True}
        assert gate.engine.asked_elsewhere == [(far.url, "served", 11, 3)]

    over(work, FakeUpstream())


def test_a_client_that_leaves_ends_the_request_at_the_upstream() -> None:
    far = FakeUpstream(answer=lambda _: streamed(chunk("one"), asyncio.Event()))

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        async with gate.http.stream("POST", CHAT, json={"model": "far", "messages": HI, "stream": True}) as answer:
            await anext(answer.aiter_bytes())
        await far.heard[0].left.wait()
        await eventually(lambda: gate.engine.asked_elsewhere)
        ((_, ending, prompt, completion),) = gate.engine.asked_elsewhere
        assert ending == "cancelled" and prompt > 0 and completion == 1

    over(work, far)


def test_a_client_that_leaves_before_the_answer_ends_the_request_too() -> None:
    far = FakeUpstream(answer=lambda _: Say(hang=True))

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        asking = asyncio.ensure_future(gate.chat())
        await eventually(lambda: far.heard)
        asking.cancel()
        await far.heard[0].left.wait()
        await eventually(lambda: gate.engine.asked_elsewhere == [(far.url, "cancelled", 0, 0)])

    over(work, far)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_clients_own_mistake_is_told_as_the_upstream_told_it(status: int) -> None:
    mistake = {"error": {"message": "no such temperature", "type": "invalid_request_error", "param": "temperature", "code": None}}

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.chat()
        assert answer.status_code == status and answer.json() == mistake
        assert gate.engine.asked_elsewhere == [(far.url, "served", 0, 0)]

    over(work, FakeUpstream(answer=lambda _: said(mistake, status)))


@pytest.mark.parametrize("path", PATHS)
def test_every_endpoint_goes_on(path: str) -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        headers = {"anthropic-version": "2023-06-01"}
        answer = await gate.http.post(path, json={"model": "far", "input": "a"}, headers=headers)
        assert answer.status_code == 200 and far.heard[0].path == path
        assert far.heard[0].headers["anthropic-version"] == "2023-06-01"
        assert answer.headers["x-request-id"] == "theirs"
        assert ("request-id" in answer.headers) is (path == "/v1/messages")

    over(work, FakeUpstream())


@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_endpoint_that_the_upstream_lacks_is_told_clearly(status: int) -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        for _ in range(2):
            answer = await gate.http.post("/v1/responses", json={"model": "far", "input": "a"})
            assert answer.status_code == 404 and error_of(answer)["code"] == "endpoint_not_found"
            assert "/v1/responses" in error_of(answer)["message"]
        assert len(far.heard) == 1, "it is not asked again for what it does not have"
        assert (await gate.chat()).status_code == 200

    over(work, FakeUpstream(answer=lambda heard: said({"detail": "Not Found"}, status) if heard.path == "/v1/responses" else said(WHOLE)))


def test_an_endpoint_that_one_upstream_lacks_is_another_ones() -> None:
    def lacking(heard: Heard) -> Say:
        return said({"detail": "Not Found"}, 404) if heard.path == "/v1/embeddings" else said(WHOLE)

    async def work(gate: Gateway, one: FakeUpstream, two: FakeUpstream) -> None:
        for _ in range(4):
            assert (await gate.http.post("/v1/embeddings", json={"model": "far", "input": "a"})).status_code == 200
        assert len(one.heard) <= 1 and len(two.heard) == 4

    over(work, FakeUpstream(answer=lacking), FakeUpstream())


def test_the_response_cache_alone_answers_those_who_want_nothing_else() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        for model in ("fake", "far"):
            answer = await gate.http.post(CHAT, json={"model": model, "messages": HI}, headers={"cache-control": "only-if-cached"})
            assert answer.status_code == 504 and not far.heard

    over(work, FakeUpstream(models=[{"id": "fake"}, CARD]), own=True, response_cache="1MiB")


def test_headers_go_on_byte_by_byte() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        agent = "Gérard".encode("latin-1")
        answer = await gate.http.post(CHAT, json={"model": "far", "messages": HI}, headers=[(b"User-Agent", agent), (b"Accept", b"*/*")])
        assert answer.status_code == 200 and far.heard[0].headers["user-agent"] == "Gérard"

    over(work, FakeUpstream())


def test_a_connection_is_used_again() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        for _ in range(3):
            await gate.stream()
            await gate.chat()
        assert len({heard.connection for heard in far.heard}) <= 2, "one more where the first was busy with a look at the models"

    over(work, FakeUpstream())


def test_traces_go_on() -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def work(gate: Gateway, far: FakeUpstream) -> None:
        await gate.http.post(CHAT, json={"model": "far", "messages": HI}, headers={"traceparent": parent})
        trace = far.heard[0].headers["traceparent"].split("-")
        assert trace[1] == parent.split("-")[1] and trace[2] != parent.split("-")[2]
        await eventually(lambda: len(gate.engine.spans) == 2)
        spans = {span.name: span for span in gate.engine.spans}
        assert spans["upstream"].context.span == trace[2]
        (server,) = (span for name, span in spans.items() if name != "upstream")
        assert server.attributes["shoal.upstream"] == far.url and server.attributes["gen_ai.usage.output_tokens"] == 3

    over(work, FakeUpstream(), traces="http://127.0.0.1:1")


def test_a_request_keeps_the_id_that_its_client_chose() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        answer = await gate.http.post(CHAT, json={"model": "far", "messages": HI}, headers={"x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine" and "x-request-id" not in far.heard[0].headers
        assert (await gate.http.post(CHAT, json={"model": "far"}, headers={"x-request-id": "not one!"})).status_code == 400

    over(work, FakeUpstream())


def test_of_a_shared_model_both_take_their_part() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        for _ in range(8):
            assert (await gate.chat("fake")).status_code == 200
        assert len(far.heard) == 4 and len(gate.engine.streams) == 4

    over(work, FakeUpstream(models=[{"id": "fake"}]), own=True, engine=FakeEngine(says("Hello")), balance="round-robin")


def test_a_conversation_stays_with_whoever_has_its_beginning() -> None:
    async def work(gate: Gateway, one: FakeUpstream, two: FakeUpstream) -> None:
        talks = [[{"role": "user", "content": f"{number} " + "word " * 400}] for number in range(4)]
        for _ in range(3):
            for talk in talks:
                assert (await gate.http.post(CHAT, json={"model": "far", "messages": talk})).status_code == 200
                talk += [{"role": "assistant", "content": "far away"}, {"role": "user", "content": "And then? " * 20}]
        for number in range(4):
            where = [any(heard.body["messages"][0]["content"].startswith(f"{number} ") for heard in each.heard) for each in (one, two)]
            assert where.count(True) == 1, where
        assert one.heard and two.heard

    over(work, FakeUpstream(), FakeUpstream())


def test_cards_are_read_leniently() -> None:
    async def work(gate: Gateway, far: FakeUpstream) -> None:
        assert gate.engines.names == [] and [*gate.upstreams.states] == ["far", "plain"]

    over(work, FakeUpstream(models=[CARD, {"id": "plain", "max_model_len": "long"}, {"id": 5}, {"id": ""}, "text"]))
