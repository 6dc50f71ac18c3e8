"""`shoal console`: opens what is there, and says what to do where nothing is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from shoal.cli import console
from shoal.errors import ClusterError


@contextmanager
def answering(status: int, media: str) -> Iterator[str]:
    """The address of a server that gives one answer to everything."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    def remember(url: str) -> bool:
        made.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", remember)
    return made


def test_it_opens_the_page_and_prints_its_address(opened: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, "text/html") as url:
        console.console(f"{url}/v1/")
    assert opened == [f"{url}/console/"] and capsys.readouterr().out.strip() == f"{url}/console/"


def test_without_a_browser_the_address_is_still_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    with answering(200, "text/html") as url:
        console.console(url)
    said = capsys.readouterr()
    assert said.out.strip() == f"{url}/console/" and "no browser" in said.err


@pytest.mark.parametrize(
    ("status", "media", "advice"),
    [(503, "text/html; charset=utf-8", "make console"), (404, "application/json", "no console"), (503, "application/json", "503")],
)
def test_a_server_without_it_is_not_opened(status: int, media: str, advice: str, opened: list[str]) -> None:
    with answering(status, media) as url, pytest.raises(ClusterError, match=advice):
        console.console(url)
    assert not opened


def test_where_nothing_listens_it_says_what_to_start(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, "text/html") as url:
        pass
    monkeypatch.setenv("SHOAL_PORT", url.rpartition(":")[2])
    with pytest.raises(ClusterError, match=f"{url} does not answer.*shoal up"):
        console.console("")
    assert not opened


@pytest.mark.parametrize(
    ("host", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("192.168.1.20", "192.168.1.20"), ("fd00::2", "[fd00::2]")]
)
def test_the_settings_of_this_machine_name_the_server(host: str, reached: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_API_HOST", host)
    monkeypatch.setenv("SHOAL_PORT", "8123")
    assert console.here() == f"http://{reached}:8123"
