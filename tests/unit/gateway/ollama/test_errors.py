"""What Ollama's API refuses, and its errors in Ollama's shape."""

from __future__ import annotations

from pathlib import Path
from time import time
from typing import Any

import pytest

from shoal.config import ApiSettings
from shoal.errors import NotReady, QueueFull, StageLost
from shoal.gateway.auth.key_store import KeyStore
from tests.support.app import app_of
from tests.support.engine import FakeEngine, able, spoken
from tests.support.http import fetch
from tests.support.ollama_api import CHAT, GENERATE, HI, ask, lines, refused


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}, "messages.0.images"),
        (CHAT, {"messages": [{"role": "tool", "content": "x", "tool_name": "f"}]}, "messages.0: no tool call"),
        (CHAT, {"options": {"nonsense": 1}}, "options: unknown parameter 'nonsense'"),
        (CHAT, {"options": {"mirostat": 2}}, "options: 'mirostat' is not supported"),
        (CHAT, {"options": {"num_predict": 0}}, "options.num_predict must be at least 1"),
        (CHAT, {"options": {"temperature": 9}}, "temperature must lie in"),
        (CHAT, {"truncate": True}, "'truncate' is not supported"),
        (CHAT, {"nonsense": 1}, "unknown parameter 'nonsense'"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 2000}]}, "the prompt has"),
        (GENERATE, {"suffix": "x"}, "'suffix' is not supported"),
        (GENERATE, {"template": "{{ .Prompt }}"}, "'template' is not supported"),
        (GENERATE, {"images": ["AAAA"]}, "'images' is not supported"),
        (GENERATE, {"context": [9999]}, "context has a token outside"),
        (GENERATE, {"context": [97] * 995}, "the prompt has"),
        (GENERATE, {"raw": True, "system": "x"}, "a raw prompt"),
        ("/api/embed", {"input": "x", "dimensions": 2}, "4 dimensions"),
    ],
)
def test_what_is_not_served_is_refused(path: str, fields: dict[str, Any], said: str) -> None:
    assert said in refused(ask(able(), path, **fields), 400)


@pytest.mark.parametrize("served", ["fake", "fake:latest", "fake:q4"])
@pytest.mark.parametrize("asks", ["fake", "fake:latest", "fake:q4"])
def test_a_name_without_a_tag_is_one_with_the_tag_latest(served: str, asks: str) -> None:
    asked: Any = able()
    asked.name = served
    same = served.removesuffix(":latest") == asks.removesuffix(":latest")
    answer = ask(asked, model=asks, stream=False)
    assert (answer.status_code, answer.json().get("model", asks)) == (200 if same else 404, asks)
    for field in ("model", "name"):
        assert fetch(app_of(asked), "POST", "/api/show", json={field: asks}).status_code == (200 if same else 404)


def test_errors_have_ollama_s_shape() -> None:
    app = app_of(able())
    assert "known here are fake" in refused(ask(able(), model="llama3"), 404)
    assert ask(able(), model="fake:latest", stream=False).json()["model"] == "fake:latest"
    for method, what in (("POST", "pull"), ("POST", "push"), ("POST", "create"), ("POST", "copy"), ("DELETE", "delete")):
        assert "this server has 'fake'" in refused(
            fetch(app, method, f"/api/{what}", **({"json": {"model": "x"}} if method == "POST" else {})), 400
        )
    refused(fetch(app, "GET", "/api/nothing"), 404)
    refused(fetch(app, "GET", CHAT), 405)
    for refusal, status in ((NotReady("the model is being loaded"), 503), (QueueFull(3, 3), 429)):
        asked = able()
        asked.refusal = refusal
        answer = ask(asked)
        refused(answer, status)
        assert int(answer.headers["retry-after"]) > 0


def test_a_stream_that_breaks_off_says_so() -> None:
    told = lines(ask(able(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")])))
    assert told[-1] == {"error": "a node was lost"} and not told[-2]["done"]


def test_keys(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    token = store.create("first", time())[1]
    store.close()
    app = app_of(FakeEngine(), ApiSettings(data=str(tmp_path)))
    assert "API key" in refused(fetch(app, "GET", "/api/tags"), 401)
    assert "API key" in refused(fetch(app, "POST", CHAT, json={"messages": HI}), 401)
    assert fetch(app, "GET", "/api/tags", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert fetch(app, "HEAD", "/").status_code == 200


def test_requests_are_counted_as_accepted_or_refused() -> None:
    asked = able()
    app = app_of(asked)
    fetch(app, "POST", CHAT, json={"messages": HI})
    fetch(app, "POST", GENERATE, json={"prompt": "Hi", "nonsense": 1})
    fetch(app, "POST", "/api/embed", json={"input": "Hi"})
    assert asked.observed == [("ollama_chat", "accepted", 9), ("ollama_generate", "400", 0), ("ollama_embed", "accepted", 2)]
