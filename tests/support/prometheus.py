"""Prometheus and promtool, as the system has them or as `make promtool` puts them into `build/`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.cluster import BOUND, free_port, until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def binary(name: str) -> str:
    """Its path; skips the test where there is none, unless SHOAL_REQUIRE_PROMTOOL is set."""
    here = ROOT / "build" / "prometheus" / "usr" / "bin" / name
    found = shutil.which(name) or (str(here) if here.exists() else None)
    if found is None and os.environ.get("SHOAL_REQUIRE_PROMTOOL"):
        pytest.fail(f"{name} is missing: make promtool")
    if found is None:
        pytest.skip(f"{name} is not installed: make promtool")
    return found


def promtool(*arguments: str | Path, stdin: str = "") -> str:
    """What it says; fails where it finds something wrong."""
    done = subprocess.run(
        [binary("promtool"), *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False, cwd=DEPLOY / "prometheus"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Prometheus:
    """A server that scrapes one head several times a second, with the alert rules that are shipped."""

    def __init__(self, folder: Path, target: str) -> None:
        """target: HOST:PORT."""
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
        changes = {
            '"127.0.0.1:8000"': f'"{target}"',
            "alerts.yml": str(DEPLOY / "prometheus" / "alerts.yml"),
            "scrape_interval: 5s": "scrape_interval: 500ms\n  scrape_timeout: 500ms",
            "evaluation_interval: 15s": "evaluation_interval: 1s",
        }
        for old, new in changes.items():
            assert old in config
            config = config.replace(old, new)
        (folder / "prometheus.yml").write_text(config)
        options = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": f"127.0.0.1:{port}",
        }
        command = [binary("prometheus"), *(f"--{name}={value}" for name, value in options.items())]
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._http = httpx.Client(base_url=self.url, timeout=BOUND, trust_env=False)
        until(self._ready, lambda: self._log.read_text()[-2000:])

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        with contextlib.suppress(httpx.TransportError):
            return self._http.get("/-/ready").status_code == 200
        return False

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; fails where there is an error instead."""
        answer = self._http.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Values now, by their labels."""
        return {str(one["metric"]): float(one["value"][1]) for one in self.get("query", query=expression)["result"]}

    def end(self) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    folder.mkdir()
    made = Prometheus(folder, target)
    try:
        yield made
    finally:
        made.end()
