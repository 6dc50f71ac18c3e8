"""/operator: what it tells whom, and who may have something done."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import urlencode

import httpx2 as httpx
import jsonschema
import msgspec
import pytest
from fastapi import FastAPI

from shoal.config import ApiSettings
from shoal.gateway.auth.key import KeyRole
from shoal.gateway.auth.key_store import KeyStore
from shoal.observed.cluster import ActionResult, Invitation
from shoal.observed.event import EventKind
from shoal.observed.requests import RequestView
from tests.support.app import app_of
from tests.support.engine import FakeEngine
from tests.support.fixed_operator import HOSTILE, FixedOperator, machine, view
from tests.support.http import eventually, fetch

ACTS = [
    ("POST", "/operator/nodes/a", {"action": "drain"}),
    ("POST", "/operator/models", {"pull": "toy"}),
    ("POST", "/operator/invitation", None),
    ("GET", "/operator/preview?node=a&action=drain", None),
    ("GET", "/operator/keys", None),
    ("POST", "/operator/keys", {"name": "x"}),
    ("DELETE", "/operator/keys/0123456789ab", None),
]


@pytest.fixture
def operator() -> FixedOperator:
    return FixedOperator()


@pytest.fixture
def app(operator: FixedOperator) -> FastAPI:
    return app_of(FakeEngine(), operator=operator)


class Keyed:
    """An API with a key of each role."""

    def __init__(self, folder: Path, operator: FixedOperator) -> None:
        store = KeyStore(folder)
        self.ids, self._tokens = dict[KeyRole, str](), dict[KeyRole, str]()
        for role in KeyRole:
            key, self._tokens[role] = store.create(f"the {role}", time(), role=role)
            self.ids[role] = key.id
        self.app = app_of(FakeEngine(), ApiSettings(data=str(folder)), operator=operator)

    def fetch(self, role: KeyRole, method: str, path: str, **options: Any) -> httpx.Response:
        return fetch(self.app, method, path, headers={"Authorization": f"Bearer {self._tokens[role]}"}, **options)


@pytest.fixture
def keyed(tmp_path: Path, operator: FixedOperator) -> Keyed:
    return Keyed(tmp_path, operator)


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"], answer.text


def test_everything_that_is_seen_is_told_as_it_is(app: FastAPI, operator: FixedOperator) -> None:
    for path, seen in (
        ("cluster", operator.cluster("")),
        ("experts", operator.experts("")),
        ("history", operator.history()),
        ("models", operator.models()),
        ("fleet-plan", operator.fleet_plan()),
    ):
        answer = fetch(app, "GET", f"/operator/{path}")
        assert answer.status_code == 200 and answer.json() == msgspec.json.decode(msgspec.json.encode(asyncio.run(seen)))
    assert fetch(app, "GET", "/operator/cluster").json()["machines"][1]["name"] == HOSTILE
    assert fetch(app, "GET", "/operator/me").json() == {"role": "operator", "key": "", "needs_key": False}


def test_events_come_by_number_kind_and_node(app: FastAPI, operator: FixedOperator) -> None:
    operator.ring.add(EventKind.JOINED, "a joined", "a")
    operator.ring.add(EventKind.LOST, "b left", "b", {"silence": 2.0})
    page = fetch(app, "GET", "/operator/events?after=1").json()
    assert page == {
        "events": [{"number": 2, "at": 123.0, "kind": "lost", "message": "b left", "node": "b", "figures": {"silence": 2.0}}],
        "latest": 2,
        "oldest": 1,
    }
    assert [event["node"] for event in fetch(app, "GET", "/operator/events?kind=joined&kind=lost").json()["events"]] == ["a", "b"]
    assert [event["node"] for event in fetch(app, "GET", "/operator/events?node=a").json()["events"]] == ["a"]
    refused(fetch(app, "GET", "/operator/events?kind=eaten"), 400, "kind must be one of joined, refused")
    refused(fetch(app, "GET", "/operator/events?after=-1"), 400, "after")


def test_a_question_waits_for_an_event(app: FastAPI, operator: FixedOperator) -> None:
    async def whole() -> dict[str, Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            asking = asyncio.ensure_future(client.get("/operator/events?wait=30"))
            await asyncio.sleep(0.15)
            assert not asking.done()
            operator.ring.add(EventKind.SLOW, "slow")
            return (await asking).json()

    assert [event["kind"] for event in asyncio.run(whole())["events"]] == ["slow"]


class Watching:
    """A reader of the stream, by ASGI: it never ends, and httpx's transport would wait for its end."""

    def __init__(self, app: FastAPI, path: str, headers: dict[str, str] | None = None) -> None:
        self._app, self._left = app, asyncio.Event()
        raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        where, _, query = path.partition("?")
        self._scope = {
            "type": "http", "method": "GET", "path": where, "raw_path": where.encode(), "query_string": query.encode(), "headers": raw,
            "http_version": "1.1", "scheme": "http", "server": ("shoal", 80), "client": ("127.0.0.1", 1), "root_path": "", "asgi": {"version": "3.0"},
        }  # fmt: skip
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self._text = ""

    async def until(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """The first events, with their kinds; then the reader leaves."""
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self._left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self._text += message.get("body", b"").decode()
            parts = [part for part in self._text.split("\n\n") if "\ndata: " in part]
            self.heard = [(part.split("\n")[0].removeprefix("event: "), json.loads(part.split("\ndata: ")[1])) for part in parts]
            if len(self.heard) >= count:
                self._left.set()

        async with asyncio.timeout(30):
            await self._app(self._scope, receive, send)
        return self.heard[:count]


def test_the_stream_tells_events_and_changes_and_nothing_twice(app: FastAPI, operator: FixedOperator) -> None:
    operator.ring.add(EventKind.JOINED, "a joined", "a")
    operator.ring.add(EventKind.SERVING, "serving")

    async def whole() -> list[tuple[str, dict[str, Any]]]:
        reader = Watching(app, "/operator/stream?after=1")
        reading = asyncio.ensure_future(reader.until(4))
        await eventually(lambda: len(reader.heard) >= 2)
        operator.view = view(machine("a", silence=1.0), machine(HOSTILE, number=2, silence=2.0), at=101.0)  # nothing has happened
        await asyncio.sleep(1.2)
        operator.view = view(machine("a"), state="waiting", reason="b left")
        operator.ring.add(EventKind.LOST, "b left", "b")
        return await reading

    heard = asyncio.run(whole())
    assert [kind for kind, _ in heard] == ["event", "cluster", "event", "cluster"]
    assert [body["number"] for kind, body in heard if kind == "event"] == [2, 3]
    assert heard[3][1]["state"] == "waiting"


def test_a_pipeline_is_asked_for_by_its_name(app: FastAPI) -> None:
    for path in ("cluster", "experts"):
        answer = fetch(app, "GET", f"/operator/{path}?pipeline=toy/1")
        assert answer.status_code == 200 and answer.json() == fetch(app, "GET", f"/operator/{path}").json()
    for path in ("cluster", "experts", "stream"):
        refused(fetch(app, "GET", f"/operator/{path}?pipeline=toy/2"), 404, "there is no pipeline 'toy/2'")


def test_a_stream_ends_with_its_pipeline(app: FastAPI, operator: FixedOperator) -> None:
    async def whole() -> list[tuple[str, dict[str, Any]]]:
        reader = Watching(app, "/operator/stream?pipeline=toy/1")
        reading = asyncio.ensure_future(reader.until(100))
        await eventually(lambda: reader.heard)
        operator.ring.add(EventKind.LEFT, "the last thing that happened")
        operator.view = view(machine("a"), pipeline="toy/2")
        return await reading

    heard = asyncio.run(whole())
    assert [kind for kind, _ in heard] == ["cluster", "event"]


def test_a_stream_goes_on_from_the_last_event_that_its_reader_had(app: FastAPI, operator: FixedOperator) -> None:
    for i in range(3):
        operator.ring.add(EventKind.JOINED, f"{i}")
    ((_, event),) = asyncio.run(Watching(app, "/operator/stream", {"Last-Event-ID": "2"}).until(1))
    assert event["number"] == 3
    refused(fetch(app, "GET", "/operator/stream", headers={"Last-Event-ID": "x"}), 400, "number of an event")


@pytest.mark.parametrize("keyless", [False, True])
def test_a_stream_ends_when_its_key_is_revoked_or_the_first_key_is_made(operator: FixedOperator, tmp_path: Path, keyless: bool) -> None:
    store = KeyStore(tmp_path)
    token = "" if keyless else store.create("alice", time())[1]
    app = app_of(FakeEngine(), ApiSettings(data=str(tmp_path)), operator=operator)

    async def whole() -> None:
        reader = Watching(app, "/operator/stream", {"Authorization": f"Bearer {token}"} if token else {})
        reading = asyncio.ensure_future(reader.until(100))
        await eventually(lambda: reader.heard)
        if keyless:
            store.create("alice", time())
        else:
            store.revoke("alice", time())
        await reading

    asyncio.run(whole())


def test_requests_and_their_timelines(app: FastAPI, operator: FixedOperator) -> None:
    assert [one["id"] for one in fetch(app, "GET", "/operator/requests").json()["requests"]] == ["chatcmpl-1", "chatcmpl-2"]
    told = fetch(app, "GET", "/operator/requests/chatcmpl-1/timeline").json()
    assert told["steps"][0]["stages"] == [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]] and told["recoveries"][0]["parts"] == {"load": 1.0}
    assert fetch(app, "GET", "/operator/requests/chatcmpl-1/timeline?after=1").json()["steps"] == []
    refused(fetch(app, "GET", "/operator/requests/other/timeline"), 404, "there is no request 'other'")


@pytest.mark.parametrize(("method", "path", "body"), ACTS)
def test_only_operators_act(keyed: Keyed, operator: FixedOperator, method: str, path: str, body: Any) -> None:
    answer = keyed.fetch(KeyRole.USER, method, path, json=body)
    refused(answer, 403, "shoal keys create NAME --role operator")
    assert answer.json()["error"]["code"] == "not_allowed" and operator.asked == []
    assert keyed.fetch(KeyRole.OPERATOR, method, path, json=body).status_code in (200, 404)
    assert fetch(keyed.app, method, path, json=body).status_code == 401


def test_an_api_that_is_open_to_the_network_lets_nobody_act_without_a_key(operator: FixedOperator, tmp_path: Path) -> None:
    app = app_of(FakeEngine(), ApiSettings(data=str(tmp_path), api_host="0.0.0.0", open_api=True), operator=operator)
    assert fetch(app, "GET", "/operator/cluster").status_code == 200
    refused(fetch(app, "POST", "/operator/nodes/a", json={"action": "remove"}), 403, "open to the network")
    assert operator.asked == []


def test_a_user_sees_the_cluster_and_its_own_requests(keyed: Keyed, operator: FixedOperator) -> None:
    operator.seen = [RequestView("mine", 1.0, keyed.ids[KeyRole.USER]), RequestView("theirs", 2.0, keyed.ids[KeyRole.OPERATOR])]
    assert keyed.fetch(KeyRole.USER, "GET", "/operator/cluster").status_code == 200
    assert keyed.fetch(KeyRole.USER, "GET", "/operator/me").json() == {"role": "user", "key": "the user", "needs_key": True}
    listed = keyed.fetch(KeyRole.USER, "GET", "/operator/requests").json()["requests"]
    assert [(one["id"], one["key"]) for one in listed] == [("mine", "the user")]
    refused(keyed.fetch(KeyRole.USER, "GET", "/operator/requests/theirs/timeline"), 404, "there is no request")
    assert len(keyed.fetch(KeyRole.OPERATOR, "GET", "/operator/requests").json()["requests"]) == 2


def test_what_was_not_done_is_a_conflict_with_the_reason(app: FastAPI, operator: FixedOperator) -> None:
    operator.results["a"] = ActionResult(False, "a cannot be drained: too little memory")
    refused(fetch(app, "POST", "/operator/nodes/a", json={"action": "drain"}), 409, "too little memory")
    assert fetch(app, "POST", "/operator/nodes/b", json={"action": "remove"}).json() == {"done": True, "message": "b: done"}
    assert operator.asked == [("drain", "a"), ("remove", "b")]
    refused(fetch(app, "POST", "/operator/nodes/b", json={"action": "eat"}), 400, "action")
    operator.invitation = Invitation("", "")
    refused(fetch(app, "POST", "/operator/invitation"), 409, "shoal serve")


def test_names_may_be_anything(app: FastAPI, operator: FixedOperator) -> None:
    assert fetch(app, "POST", "/operator/nodes/a%20b", json={"action": "drain"}).status_code == 200
    assert operator.asked == [("drain", "a b")]


def test_keys_are_made_listed_and_revoked(keyed: Keyed) -> None:
    body = {"name": "bob", "role": "operator", "rpm": 5, "expires": int(time()) + 1000, "priority": "flex"}
    made = keyed.fetch(KeyRole.OPERATOR, "POST", "/operator/keys", json=body).json()
    assert made["token"].startswith("sk-shoal-") and (made["role"], made["rpm"], made["priority"]) == ("operator", 5, "flex")
    refused(keyed.fetch(KeyRole.OPERATOR, "POST", "/operator/keys", json=body), 409, "already exists")
    refused(keyed.fetch(KeyRole.OPERATOR, "POST", "/operator/keys", json={"name": "x", "expires": 5}), 400, "in the past")
    refused(keyed.fetch(KeyRole.OPERATOR, "POST", "/operator/keys", json={"name": "x\n"}), 400, "printable")
    listed = keyed.fetch(KeyRole.OPERATOR, "GET", "/operator/keys").json()["keys"]
    assert [(key["name"], key["role"], key["token"]) for key in listed] == [
        ("the user", "user", None),
        ("the operator", "operator", None),
        ("bob", "operator", None),
    ]
    assert keyed.fetch(KeyRole.OPERATOR, "DELETE", f"/operator/keys/{made['id']}").json()["state"] == "revoked"
    refused(keyed.fetch(KeyRole.OPERATOR, "DELETE", f"/operator/keys/{made['id']}"), 404, "there is no key")
    refused(keyed.fetch(KeyRole.OPERATOR, "DELETE", "/operator/keys/bob"), 404, "there is no key")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({"action": "drain"}, ("drain", None)),
        ({"action": "remove"}, ("remove", None)),
        ({"action": "cap", "memory": "8GiB"}, ("cap", 8 << 30)),
        ({"action": "cap"}, ("cap", None)),
    ],
)
def test_what_would_come_of_an_action_is_asked_with_its_figures(
    app: FastAPI, operator: FixedOperator, asked: dict[str, str], meant: tuple[str, int | None]
) -> None:
    answer = fetch(app, "GET", f"/operator/preview?{urlencode({'node': HOSTILE, **asked})}")
    assert answer.status_code == 200 and answer.json()["predicted"] == 50
    assert operator.asked == [("preview", HOSTILE, *meant)]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("action=drain", "node"),
        ("node=a", "action"),
        ("node=a&action=rename", "action"),
        ("node=a&action=drain&memory=8GiB", "memory is for the action 'cap'"),
        ("node=a&action=cap&memory=", "memory"),
        ("node=a&action=cap&memory=much", "memory: "),
    ],
)
def test_what_cannot_be_previewed_is_refused(app: FastAPI, operator: FixedOperator, query: str, words: str) -> None:
    answer = fetch(app, "GET", f"/operator/preview?{query}")
    assert answer.status_code == 400 and words in answer.text, answer.text
    assert operator.asked == []


def test_what_is_told_is_what_the_document_says(app: FastAPI) -> None:
    document = fetch(app, "GET", "/openapi.json").json()
    asked = {
        "/operator/me": "/operator/me",
        "/operator/cluster": "/operator/cluster",
        "/operator/experts": "/operator/experts",
        "/operator/history": "/operator/history",
        "/operator/events": "/operator/events",
        "/operator/requests": "/operator/requests",
        "/operator/requests/{id}/timeline": "/operator/requests/chatcmpl-1/timeline",
        "/operator/preview": "/operator/preview?node=a&action=drain",
        "/operator/models": "/operator/models",
        "/operator/fleet-plan": "/operator/fleet-plan",
        "/operator/keys": "/operator/keys",
    }
    documented = {path for path, ways in document["paths"].items() if path.startswith("/operator") and "get" in ways}
    assert documented == {*asked, "/operator/stream"}
    for path, url in asked.items():
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        answer = fetch(app, "GET", url)
        assert answer.status_code == 200, answer.text
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**answer.json(), "more": 1}, {**schema, "components": document["components"]})


def test_an_engine_alone_has_no_operator() -> None:
    assert fetch(app_of(FakeEngine()), "GET", "/operator/cluster").status_code == 404
