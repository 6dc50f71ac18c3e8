"""The API over several models: every endpoint asks the model that its request names, in the head, in a worker, and behind the cache."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from websockets.asyncio.client import connect

from shoal.errors import NotReady
from shoal.gateway.engines import ServedEngines
from shoal.request import Request
from tests.support.engine import Resumed, ScriptedStream, spoken
from tests.support.http import CHAT, COMPLETIONS, HI, eventually, refused, serving
from tests.support.resumed import NAME, parsed, texts
from tests.support.several import ALIASES, Called, OnDemand, Place, at, half, served

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
KINDS = ["here", "elsewhere", "cached"]

pytestmark = pytest.mark.parametrize("kind", KINDS)


def three() -> ServedEngines:
    return served(Called("alpha"), Called("beta"), Called("gamma"))


def text_of(path: str, said: Any) -> str:
    """What an answer says."""
    match path:
        case "/v1/chat/completions":
            return said["choices"][0]["message"]["content"]
        case "/v1/completions":
            return said["choices"][0]["text"]
        case "/v1/responses":
            return said["output"][0]["content"][0]["text"]
        case "/v1/messages":
            return said["content"][0]["text"]
        case "/api/chat":
            return said["message"]["content"]
        case _:
            return said["response"]


ASKING: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI},
    COMPLETIONS: {"prompt": "Hi"},
    RESPONSES: {"input": "Hi"},
    MESSAGES: {"messages": HI, "max_tokens": 100},
    "/api/chat": {"messages": HI, "stream": False},
    "/api/generate": {"prompt": "Hi", "stream": False},
}
NAMED = [(None, "alpha"), ("alpha", "alpha"), ("beta", "beta"), ("gamma", "gamma"), ("gpt-4o", "beta"), ("best", "beta")]


@pytest.mark.parametrize(("asked", "answers"), NAMED)
@pytest.mark.parametrize("path", ASKING)
def test_an_answer_is_of_the_model_that_was_asked_for(kind: str, path: str, asked: str | None, answers: str) -> None:
    async def work(place: Place) -> None:
        body = {**ASKING[path], **({} if asked is None else {"model": asked})}
        told = await place.post(path, body)
        assert text_of(path, told) == answers
        by_client = asked or "alpha:latest"  # Ollama's answers say what was sent
        assert told["model"] == (by_client if path.startswith("/api/") else answers)
        engines = {engine.name: engine for engine in place.models}
        await eventually(lambda: [len(engines[name].observed) for name in engines] == [name == answers for name in engines])

    at(kind, three, work)


@pytest.mark.parametrize(
    "path", [*ASKING, "/v1/embeddings", "/tokenize", "/detokenize", f"{MESSAGES}/count_tokens", f"{RESPONSES}/input_tokens"]
)
def test_an_unknown_model_is_told_which_there_are(kind: str, path: str) -> None:
    async def work(place: Place) -> None:
        answer = await place.http.post(path, json={**ASKING.get(path, {"input": "Hi"}), "model": "delta"})
        assert answer.status_code == 404
        assert "known here are alpha, beta, gamma, gpt-4o, best" in answer.text
        if path in ASKING:
            alpha = place.models[0]
            await eventually(lambda: [entry[1:] for entry in alpha.observed] == [("404", 0)])  # the telemetry of the server

    at(kind, three, work)


@pytest.mark.parametrize("path", ASKING)
def test_a_model_that_is_no_text_is_a_fault_of_the_body(kind: str, path: str) -> None:
    async def work(place: Place) -> None:
        answer = await place.http.post(path, json={**ASKING[path], "model": 7})
        assert (answer.status_code, "model" in answer.text) == (400, True)

    at(kind, three, work)


def test_streams_say_which_model_they_are_of(kind: str) -> None:
    async def work(place: Place) -> None:
        answer = await place.http.post(CHAT, json={"messages": HI, "stream": True, "model": "best"})
        events = parsed(answer.text)
        assert texts(events, 1) == ["beta"]
        assert {data["model"] for _, data in events[:-1]} == {"beta"}

    at(kind, three, work)


def test_models_run_at_the_same_time(kind: str) -> None:
    async def work(place: Place) -> None:
        names = ["alpha", "beta", "gamma", "best"] * 5
        said = await asyncio.gather(*(place.post(CHAT, {"messages": HI, "model": name}) for name in names))
        assert [each["choices"][0]["message"]["content"] for each in said] == [
            ALIASES.get(name, name).replace("gpt-4o", "beta") for name in names
        ]

    at(kind, three, work)


def test_tokens_are_those_of_the_model(kind: str) -> None:
    async def work(place: Place) -> None:
        short = {model: (await place.post("/tokenize", {"prompt": "Hi", "model": model}))["max_model_len"] for model in ("alpha", "best")}
        assert short == {"alpha": 1000, "best": 20}
        assert (await place.post("/detokenize", {"tokens": [72, 105], "model": "best"}))["prompt"] == "Hi"
        assert (await place.post(f"{MESSAGES}/count_tokens", {"messages": HI, "model": "best"}))["input_tokens"] == 9
        assert (await place.post(f"{RESPONSES}/input_tokens", {"input": "Hi", "model": "best"}))["input_tokens"] == 9
        assert (await place.http.get("/tokenizer_info", params={"model": "best"})).json()["eos_token"] == "<end>"
        refused(await place.http.get("/tokenizer_info", params={"model": "delta"}), 404, "model", "model_not_found")
        long = {"input": "x" * 30}
        assert (await place.http.post("/v1/embeddings", json={**long, "model": "beta"})).status_code == 400
        told = await place.post("/v1/embeddings", long)
        assert (told["model"], len(told["data"])) == ("alpha", 1)

    at(kind, lambda: served(Called("alpha"), Called("beta", longest=20)), work)


def test_embeddings_are_of_the_model(kind: str) -> None:
    async def work(place: Place) -> None:
        assert (await place.post("/v1/embeddings", {"input": "Hi", "model": "best"}))["model"] == "beta"
        assert (await place.post("/api/embed", {"input": "Hi", "model": "best:latest"}))["model"] == "best:latest"
        assert [len(engine.streams) for engine in place.models] == [0, 2, 0]

    at(kind, three, work)


def test_a_conversation_goes_on_with_another_model(kind: str) -> None:
    async def work(place: Place) -> None:
        first = await place.post(RESPONSES, {"input": "Hi", "model": "alpha"})
        second = await place.post(RESPONSES, {"input": "And?", "model": "best", "previous_response_id": first["id"]})
        assert (first["model"], second["model"]) == ("alpha", "beta")
        (stream,) = place.models[1].streams
        assert bytes(stream.request.prompt).decode() == "user: Hi\nassistant: alpha\nuser: And?\n"
        kept = [(await place.http.get(f"{RESPONSES}/{each['id']}")).json() for each in (first, second)]
        assert kept == [first, second]
        await place.post(f"{RESPONSES}/compact", {"input": "Hi", "model": "gamma"})
        assert [len(engine.streams) for engine in place.models] == [1, 1, 1]

    at(kind, three, work)


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_messages_on_one_socket_ask_different_models(kind: str, path: str) -> None:
    async def work(place: Place) -> None:
        async with serving(place.app) as port, connect(f"ws://127.0.0.1:{port}{path}", proxy=None) as socket:
            said = [await asked(socket, model) for model in ("beta", None, "best", "delta", "gamma")]
        assert said == ["beta", "alpha", "beta", "404", "gamma"]
        counts = {engine.name: [outcome for _, outcome, _ in engine.observed] for engine in place.models}
        assert counts == {"alpha": ["accepted", "404"], "beta": ["accepted"] * 2, "gamma": ["accepted"]}

    async def asked(socket: Any, model: str | None) -> str:
        fields = {} if model is None else {"model": model}
        await socket.send(json.dumps({**({"messages": HI} if path == CHAT else {"type": "response.create", "input": "Hi"}), **fields}))
        while True:
            told = json.loads(await socket.recv())
            if "status" in told and "error" in told:
                return str(told["status"])
            if told.get("type") == "response.completed":
                return text_of(RESPONSES, told["response"])
            for choice in told.get("choices", ()):
                said.append(choice["delta"].get("content") or "")
            if told.get("type") == "done":
                whole = "".join(said)
                said.clear()
                return whole

    said: list[str] = []
    at(kind, three, work)


def test_a_turn_without_an_answer_is_of_its_model(kind: str) -> None:
    async def work(place: Place) -> None:
        async with serving(place.app) as port, connect(f"ws://127.0.0.1:{port}{RESPONSES}", proxy=None) as socket:
            await socket.send(json.dumps({"type": "response.create", "input": "Hi", "generate": False, "model": "best"}))
            assert json.loads(await socket.recv())["response"]["model"] == "beta"

    at(kind, three, work)


# Listings


def test_all_models_and_aliases_are_listed(kind: str) -> None:
    async def work(place: Place) -> None:
        listed = (await place.http.get("/v1/models")).json()["data"]
        assert [(card["id"], card["root"], card["created"], card["max_model_len"]) for card in listed] == [
            ("alpha", "alpha", 12, 1000),
            ("beta", "beta", 11, 1000),
            ("gamma", "gamma", 12, 1000),
            ("gpt-4o", "beta", 11, 1000),
            ("best", "beta", 11, 1000),
        ]
        assert [(await place.http.get(f"/v1/models/{card['id']}")).json() for card in listed] == listed
        refused(await place.http.get("/v1/models/delta"), 404, "model", "model_not_found")

    at(kind, three, work)


def test_anthropic_s_listing_has_them_too(kind: str) -> None:
    async def work(place: Place) -> None:
        page = (await place.http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()
        assert [(each["id"], each["display_name"]) for each in page["data"]][-2:] == [("gpt-4o", "beta"), ("best", "beta")]
        assert (page["first_id"], page["last_id"]) == ("alpha", "best")

    at(kind, three, work)


def test_ollama_s_listings_have_them_too(kind: str) -> None:
    async def work(place: Place) -> None:
        tags = (await place.http.get("/api/tags")).json()["models"]
        assert [each["name"] for each in tags] == [f"{name}:latest" for name in ("alpha", "beta", "gamma", "gpt-4o", "best")]
        digests = [each["digest"] for each in tags]
        assert len(set(digests)) == 3 and digests[1] == digests[3] == digests[4]
        place.models[2].state = "it is loading"
        await place.settled()
        await eventually(lambda: place.seen.all[2].state)
        running = (await place.http.get("/api/ps")).json()["models"]
        assert [each["name"] for each in running] == ["alpha:latest", "beta:latest"]
        for field, name in (("model", "best"), ("name", "best:latest"), ("model", "beta")):
            assert (await place.post("/api/show", {field: name}))["model_info"]["general.basename"] == "beta"
        assert (await place.post("/api/show", {}))["model_info"]["general.basename"] == "alpha"
        assert (await place.http.post("/api/show", json={"name": "delta"})).status_code == 404
        assert "'alpha' and 'beta' and 'gamma'" in (await place.http.post("/api/pull", json={"model": "x"})).text

    at(kind, three, work)


def test_readiness_is_that_of_all_models_or_of_one(kind: str) -> None:
    async def work(place: Place) -> None:
        beta = place.models[1]
        assert (await place.http.get("/health/ready")).status_code == 200
        beta.state = "1 of 2 nodes have joined"
        await place.settled()
        answer = await place.http.get("/health/ready")
        assert (answer.status_code, answer.json()) == (
            503,
            {
                "ready": False,
                "reason": "beta: 1 of 2 nodes have joined",
                "models": [
                    {"name": "alpha", "ready": True, "reason": ""},
                    {"name": "beta", "ready": False, "reason": "1 of 2 nodes have joined"},
                    {"name": "gamma", "ready": True, "reason": ""},
                ],
            },
        )
        assert (await place.http.get("/health")).json() == {"live": True, **answer.json()}
        ready = {
            model: (await place.http.get("/health/ready", params={"model": model})).status_code
            for model in ("alpha", "beta", "best", "delta")
        }
        assert ready == {"alpha": 200, "beta": 503, "best": 503, "delta": 404}
        assert (await place.post(CHAT, {"messages": HI}))["model"] == "alpha"
        refused(await place.http.post(CHAT, json={"messages": HI, "model": "best"}), 503, None, "not_ready")

    at(kind, three, work)


# Models that come and go


def test_a_model_that_comes_is_served_and_one_that_goes_is_not(kind: str) -> None:
    async def work(place: Place) -> None:
        place.engines.add(Called("delta"))
        place.engines.rename({"fourth": "delta"})
        await place.settled()
        assert (await place.post(CHAT, {"messages": HI, "model": "fourth"}))["model"] == "delta"
        refused(await place.http.post(CHAT, json={"messages": HI, "model": "best"}), 404, "model", "model_not_found")
        place.engines.remove("delta")
        await place.settled()
        for name in ("delta", "fourth"):
            refused(await place.http.post(CHAT, json={"messages": HI, "model": name}), 404, "model", "model_not_found")
        listed = (await place.http.get("/v1/models")).json()["data"]
        assert [card["id"] for card in listed] == ["alpha", "beta", "gamma"]

    at(kind, three, work)


def test_an_alias_that_is_set_anew_leads_elsewhere(kind: str) -> None:
    async def work(place: Place) -> None:
        place.engines.rename({"best": "gamma"})
        await place.settled()
        assert (await place.post(CHAT, {"messages": HI, "model": "best"}))["model"] == "gamma"

    at(kind, three, work)


def test_a_model_in_the_place_of_one_of_its_name_answers_from_then_on(kind: str) -> None:
    async def work(place: Place) -> None:
        before = place.seen.all[0]
        new = Called("alpha")
        place.engines.add(new)
        await eventually(lambda: place.seen.all[0] is not before)
        await place.post(CHAT, {"messages": HI})
        assert len(new.streams) == 1

    at(kind, three, work)


@pytest.mark.parametrize("stream", [False, True])
def test_the_answers_of_a_model_that_goes_end_with_a_clear_error_and_others_go_on(kind: str, stream: bool) -> None:
    async def work(place: Place) -> None:
        alpha, beta = place.models
        asking = [
            asyncio.ensure_future(place.http.post(CHAT, json={"messages": HI, "stream": stream, "model": name}))
            for name in ("beta", "alpha")
        ]
        await eventually(lambda: beta.streams and not beta.streams[0]._items and alpha.streams and not alpha.streams[0]._items)
        place.engines.remove("beta")
        ended = await asking[0]
        if stream:
            assert parsed(ended.text)[-1][1]["error"]["message"] == "the model 'beta' was unloaded"
        else:
            refused(ended, 503, None, "not_ready")
            assert "the model 'beta' was unloaded" in ended.text
        await eventually(lambda: beta.streams[0].closed and beta.ended == ["failed"] and not beta.kept)
        assert not alpha.streams[0].closed and not asking[1].done()
        alpha.streams[0].close()
        await asking[1]

    at(kind, lambda: served(Called("alpha", half, hang=True), Called("beta", half, hang=True), aliases={}), work)


def test_an_answer_that_was_being_begun_when_its_model_went_ends_too(kind: str) -> None:
    class Slow(Called):
        async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> Any:
            streams = await super().begin(answer, note, requests, named)
            await going.wait()
            return streams

    async def work(place: Place) -> None:
        asking = asyncio.ensure_future(place.http.post(CHAT, json={"messages": HI, "model": "beta"}))
        await eventually(lambda: slow[-1].streams)
        place.engines.remove("beta")
        going.set()
        refused(await asking, 503, None, "not_ready")

    def engines() -> ServedEngines:
        slow.append(Slow("beta", half, hang=True))
        return served(Called("alpha"), slow[-1], aliases={})

    slow, going = list[Slow](), asyncio.Event()
    at(kind, engines, work)


def test_a_request_waits_for_its_model_to_be_loaded(kind: str) -> None:
    async def work(place: Place) -> None:
        engines: Any = place.engines
        asking = asyncio.ensure_future(place.post(CHAT, {"messages": HI, "model": "beta"}))
        await eventually(lambda: engines.asked)
        assert [card["id"] for card in (await place.http.get("/v1/models")).json()["data"]] == ["alpha", "beta"]
        assert (await place.http.get("/v1/models/beta")).json()["created"] == 0
        health = await place.http.get("/health/ready")
        assert (health.status_code, health.json()["models"][1]["reason"]) == (200, "it is loaded when it is asked for")
        assert (await place.post(CHAT, {"messages": HI}))["model"] == "alpha"
        engines.loaded.set()
        assert (await asking)["model"] == "beta"

    at(kind, lambda: OnDemand([Called("alpha")], [Called("beta")]), work)


def test_a_model_is_not_waited_for_by_a_client_that_left(kind: str) -> None:
    async def work(place: Place) -> None:
        engines: Any = place.engines
        asking = asyncio.ensure_future(place.http.post(CHAT, json={"messages": HI, "model": "beta"}))
        await eventually(lambda: engines.asked)
        asking.cancel()
        await eventually(lambda: engines.asked == ["beta", "nobody"])

    at(kind, lambda: OnDemand([Called("alpha")], [Called("beta")]), work)


def test_a_model_that_cannot_be_loaded_is_a_refusal_with_its_reason(kind: str) -> None:
    class Full(OnDemand):
        async def missing(self, name: str) -> Any:
            raise NotReady("2 GiB are missing")

    async def work(place: Place) -> None:
        answer = await place.http.post(CHAT, json={"messages": HI, "model": "beta"})
        assert "2 GiB are missing" in refused(answer, 503, None, "not_ready")

    at(kind, lambda: Full([Called("alpha")], [Called("beta")]), work)


# Answers that clients come back for


@pytest.mark.parametrize("model", ["alpha", "beta"])
def test_a_stream_is_read_again_from_its_own_model(kind: str, model: str) -> None:
    async def work(place: Place) -> None:
        first = await place.http.post(CHAT, json={"messages": HI, "stream": True, "model": model}, headers=NAME)
        again = await place.http.get("/v1/streams/mine-1")
        assert parsed(again.text) == parsed(first.text)
        refused(await place.http.post(CHAT, json={"messages": HI, "model": "gamma"}, headers=NAME), 409, "X-Request-Id", "id_taken")

    at(kind, three, work)


def before(name: str, make: Callable[[], Called], id: str) -> Called:
    """A model with an answer that an engine before it began."""
    made, donor = make(), Called(name)

    async def ask(place: Place) -> None:
        await place.post(CHAT, {"messages": HI}, headers={"X-Request-Id": id})

    at("here", lambda: served(donor, aliases={}), ask)
    ((note, requests),) = donor.kept.values()
    made.before.append(Resumed(id, note, requests, [ScriptedStream(r, spoken(r, f"{name} again"), False) for r in requests]))
    return made


def test_what_outlived_engines_before_is_found_with_its_model(kind: str) -> None:
    async def work(place: Place) -> None:
        for name in ("beta", "alpha"):
            events = parsed((await place.http.get(f"/v1/streams/old-{name}")).text)
            assert texts(events, 1) == [f"{name} again"]
            assert events[0][1]["model"] == name

    kept = [before(name, lambda name=name: Called(name), f"old-{name}") for name in ("alpha", "beta")]
    at(kind, lambda: served(*kept, aliases={}), work)


def test_what_outlived_an_engine_is_taken_up_when_its_model_comes(kind: str) -> None:
    async def work(place: Place) -> None:
        place.engines.add(late)
        await place.settled()
        await eventually(lambda: late.ended == ["complete"])
        assert texts(parsed((await place.http.get("/v1/streams/old")).text), 1) == ["beta again"]

    late = before("beta", lambda: Called("beta"), "old")
    at(kind, lambda: served(Called("alpha"), aliases={}), work)


# The response cache


def test_a_kept_answer_is_its_model_s_whatever_name_it_is_asked_by(kind: str) -> None:
    async def work(place: Place) -> None:
        marks: list[tuple[str, str]] = []
        for name in ("beta", "best", "alpha", "gpt-4o", "alpha"):
            answer = await place.http.post(CHAT, json={"messages": HI, "temperature": 0, "model": name})
            marks.append((answer.headers["x-shoal-cache"], answer.json()["choices"][0]["message"]["content"]))
        assert marks == [("miss", "beta"), ("hit", "beta"), ("miss", "alpha"), ("hit", "beta"), ("hit", "alpha")]
        await eventually(lambda: [engine.reused for engine in place.models] == [[False, True], [False, True, True], []])
        assert place.models[0].cache_bytes > 0  # the server's

    at(kind, three, work, response_cache="1MiB")
