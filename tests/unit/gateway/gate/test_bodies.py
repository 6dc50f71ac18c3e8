"""What is refused for its size or kind before it is read."""

from __future__ import annotations

import pytest

from shoal.gateway.auth.gate import MAX_HEADERS, MAX_TARGET
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.service import MAX_DEPTH
from tests.support.engine import FakeEngine
from tests.support.gate import ASK, app_of
from tests.support.http import CHAT, COMPLETIONS, fetch, refused

# Sizes


def test_too_many_headers_are_refused(store: KeyStore) -> None:
    app = app_of(store)
    refused(fetch(app, "GET", "/health", headers=[("X-A", "1")] * (MAX_HEADERS + 1)), 431, code="request_too_large")
    assert fetch(app, "GET", "/health", headers=[("X-A", "1")] * (MAX_HEADERS - 10)).status_code == 200


def test_headers_that_are_too_long_are_refused(store: KeyStore) -> None:
    refused(fetch(app_of(store), "GET", "/health", headers={"X-A": "x" * 40_000}), 431, code="request_too_large")


def test_a_path_that_is_too_long_is_refused(store: KeyStore) -> None:
    refused(fetch(app_of(store), "GET", "/v1/models/" + "x" * MAX_TARGET), 414, code="request_too_large")
    refused(fetch(app_of(store), "GET", "/v1/models?" + "x" * MAX_TARGET), 414, code="request_too_large")


def test_a_length_that_is_too_much_is_refused_before_anything_is_read(store: KeyStore) -> None:
    headers = {"Content-Length": str(10**15), "Content-Type": "application/json"}
    refused(fetch(app_of(store), "POST", CHAT, content=b"{}", headers=headers), 413, code="request_too_large")


@pytest.mark.parametrize(("depth", "status"), [(MAX_DEPTH, "depth"), (MAX_DEPTH - 1, "field")])
def test_what_is_nested_too_deep_is_refused_before_it_is_parsed(store: KeyStore, depth: int, status: str) -> None:
    body = b'{"messages": %s%s}' % (b"[" * depth, b"]" * depth)
    message = fetch(app_of(store), "POST", CHAT, content=body).json()["error"]["message"]
    assert ("levels of arrays and objects" in message) == (status == "depth")


def test_brackets_in_text_nest_nothing(store: KeyStore) -> None:
    text = "[" * 500 + '"\\' + "{" * 500
    engine = FakeEngine(longest=5000)
    assert fetch(app_of(store, engine), "POST", CHAT, json={"messages": [{"role": "user", "content": text}]}).status_code == 200


def test_a_prompt_that_can_never_fit_is_not_tokenised(store: KeyStore) -> None:
    engine = FakeEngine(longest=100)
    engine.tokenizer.encode = None  # pyright: ignore[reportAttributeAccessIssue]
    long = "x" * (64 * 100 + 1)
    app = app_of(store, engine)
    refused(fetch(app, "POST", COMPLETIONS, json={"prompt": long}), 400, "prompt", "context_length_exceeded")
    refused(fetch(app, "POST", CHAT, json={"messages": [{"role": "user", "content": long}]}), 400, "messages", "context_length_exceeded")


def test_biases_are_counted(store: KeyStore) -> None:
    refused(fetch(app_of(store), "POST", CHAT, json={**ASK, "logit_bias": {str(i): 0 for i in range(2000)}}), 400, "logit_bias")


# Kinds of bodies and methods


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "image/png"])
def test_a_body_that_says_it_is_no_json_is_refused(store: KeyStore, kind: str) -> None:
    answer = fetch(app_of(store), "POST", CHAT, content=b'{"messages": []}', headers={"Content-Type": kind})
    assert kind.split(";")[0] in refused(answer, 415, "Content-Type", "unsupported_media_type")


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/vnd.x+json",
        "application/x-www-form-urlencoded",
    ],
)
def test_json_by_any_of_its_names_is_taken(store: KeyStore, kind: str) -> None:
    answer = fetch(
        app_of(store), "POST", CHAT, content=b'{"messages": [{"role": "user", "content": "Hi"}]}', headers={"Content-Type": kind}
    )
    assert answer.status_code == 200


def test_a_wrong_method_says_which_is_right(store: KeyStore) -> None:
    answer = fetch(app_of(store), "GET", CHAT)
    assert "POST" in refused(answer, 405)
    assert answer.headers["allow"] == "POST"
