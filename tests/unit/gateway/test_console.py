"""The console's files, as they are served."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI

from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.endpoints import console
from tests.support.engine import FakeEngine
from tests.support.gate import app_of
from tests.support.http import fetch

FILES = {
    "index.html": "<!doctype html><title>console</title>",
    "assets/index-DlePj3AQ.js": "go()",
    "assets/index-D_-3zPx0.css": "a {}",
    "assets/icon-CCyaFAin.svg": "<svg/>",
    "notes.txt": "not a file of the page",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "console"
    for name, text in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    (tmp_path / "secret.html").write_text("outside")
    return made


@pytest.fixture
def app(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """With a key, which the page must not need."""
    monkeypatch.setattr(console, "FOLDER", folder)
    store = KeyStore(tmp_path / "api")
    store.create("alice", 0)
    return app_of(store, FakeEngine())


@pytest.mark.parametrize(
    ("path", "media", "kept"),
    [
        ("/console/", "text/html; charset=utf-8", "no-cache"),
        ("/console/index.html", "text/html; charset=utf-8", "no-cache"),
        ("/console/assets/index-DlePj3AQ.js", "text/javascript; charset=utf-8", "public, max-age=31536000, immutable"),
        ("/console/assets/index-D_-3zPx0.css", "text/css; charset=utf-8", "public, max-age=31536000, immutable"),
        ("/console/assets/icon-CCyaFAin.svg", "image/svg+xml", "public, max-age=31536000, immutable"),
    ],
)
def test_files_are_open_and_say_what_they_are(app: FastAPI, path: str, media: str, kept: str) -> None:
    answer = fetch(app, "GET", path)
    assert answer.status_code == 200
    assert answer.text == FILES[path.removeprefix("/console/") or "index.html"]
    assert answer.headers["content-type"] == media and answer.headers["cache-control"] == kept


def test_the_page_may_load_and_ask_nothing_but_its_own_server(app: FastAPI) -> None:
    headers = fetch(app, "GET", "/console/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "font-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["notes.txt", "assets/", "assets/none-DlePj3AQ.js", "../secret.html", "%2e%2e/secret.html", "..%2fsecret.html", "/secret.html"]
)
def test_no_other_file_is_served(app: FastAPI, path: str) -> None:
    answer = fetch(app, "GET", f"/console/{path}")
    assert answer.status_code in (401, 404)  # a client may shorten .. itself, to a path that needs a key
    assert "outside" not in answer.text and "not a file" not in answer.text


def test_what_the_browser_has_is_not_sent_again(app: FastAPI) -> None:
    tag = fetch(app, "GET", "/console/").headers["etag"]
    again = fetch(app, "GET", "/console/", headers={"If-None-Match": f'"other", W/{tag}'})
    assert again.status_code == 304 and not again.content and again.headers["etag"] == tag
    assert fetch(app, "GET", "/console/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_folder_is_found_without_its_slash_also_below_a_prefix(app: FastAPI) -> None:
    answer = fetch(app, "GET", "/console", follow_redirects=False)
    assert answer.status_code == 308 and answer.headers["location"] == "console/"


def test_other_paths_still_need_the_key(app: FastAPI) -> None:
    for path in ("/consoles", "/console.html", "/v1/models"):
        assert fetch(app, "GET", path).status_code == 401


def test_a_console_that_was_not_built_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "FOLDER", tmp_path / "none")
    answer = fetch(app_of(KeyStore(tmp_path / "api")), "GET", "/console/")
    assert answer.status_code == 503 and "make console" in answer.text
    assert answer.headers["content-security-policy"] == console.HEADERS["Content-Security-Policy"]


@pytest.mark.skipif(not console.built(), reason="`make console` builds it")
def test_what_was_built_is_served_whole_and_has_nothing_inline(tmp_path: Path) -> None:
    app = app_of(KeyStore(tmp_path / "api"))
    page = fetch(app, "GET", "/console/").text
    assert (
        "<style" not in page and "onload" not in page and page.count("<script") == page.count('<script type="module" crossorigin src=') == 1
    )
    names = [name for name in console.console_files() if name != console.INDEX]
    assert {Path(name).suffix for name in names} == {".js", ".css", ".svg"}
    for name in names:
        answer = fetch(app, "GET", f"/console/{name}")
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
        assert name in page or name.endswith(".svg")
