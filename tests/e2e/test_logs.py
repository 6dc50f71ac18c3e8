"""`--log-format json`: every line on stderr is an object, of shoal and of its libraries, and none holds a key or a prompt."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import forks
from tests.support.cluster import cluster

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPT = "My grandmother's maiden name is Quixwort."


def objects(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert {"timestamp", "level", "event", "logger"} <= line.keys(), line
        assert line["timestamp"].endswith("Z") and datetime.fromisoformat(line["timestamp"]).tzinfo == UTC
    return lines


def test_a_cluster_s_life_in_json_without_keys_and_prompts(tmp_path: Path, smollm2: Path) -> None:
    with cluster(tmp_path) as made:
        data = ("--data", str(tmp_path / "api"))
        made.start("keys", "create", "alice", *data).wait()
        key = re.search(r"sk-shoal-\S+", made.story())
        assert key is not None
        ports = ("--port", str(made.port), "--control-port", str(made.control_port))
        flags = ("--model", str(smollm2), "--nodes", "1", "--memory", "600MiB", "--threads", "1", "--api-workers", "2")
        head = made.start("--log-format", "json", "--verbose", "up", *ports, *data, *flags)
        made.until_ready()
        headers = {"Authorization": f"Bearer {key[0]}"}
        body = {"prompt": PROMPT, "max_tokens": 2}
        assert httpx2.post(f"{made.url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False).status_code == 200
        assert httpx2.post(f"{made.url}/v1/completions", json={**body, "prompt": [PROMPT, {}]}, headers=headers, trust_env=False).is_error
        head.signal(signal.SIGTERM)
        assert head.wait() == 0, head.describe()
    lines = objects(head.said)
    assert any(line["event"].startswith("API on http://") for line in lines)
    assert {line["level"] for line in lines} <= {"info", "warning"}
    assert any(line["logger"].startswith("shoal.node") for line in lines)
    assert key[0] not in head.said and key[0][-12:] not in head.said and "Quixwort" not in head.said


@pytest.mark.parametrize(
    "words", [("join", "127.0.0.1:nowhere"), ("up", "--port", "many"), ("serve", "--slots", "0")], ids=lambda words: words[0]
)
def test_errors_are_objects_too(words: tuple[str, ...]) -> None:
    done = forks.run(("--log-format", "json", *words), os.environ)
    (line,) = objects(done.stderr)
    assert done.returncode == 2 and line["level"] == "error" and line["event"]


def test_the_environment_and_the_file_say_it_too_and_auto_is_json_off_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for environment, text in (({"SHOAL_LOG_FORMAT": "json"}, ""), ({}, 'log-format = "json"'), ({"SHOAL_LOG_FORMAT": "auto"}, "")):
        file.write_text(text)
        done = forks.run(("join", "127.0.0.1:nowhere"), {**os.environ, "SHOAL_CONFIG": str(file), **environment})
        assert len(objects(done.stderr)) == 1, done.stderr


LIBRARIES = """
import logging, sys, threading, warnings
from shoal.cli.log_format import LogFormat
from shoal.cli.logs import log_to_stderr
import structlog
log_to_stderr(format=LogFormat(sys.argv[1]))
hidden_local = "a local variable's value".upper()
logging.getLogger("uvicorn.error").error("of uvicorn: redis://:hunter22@host/0")
try:
    {}["missing"]
except KeyError:
    logging.getLogger("asyncio").exception("of asyncio")
    structlog.get_logger().error("of shoal: Bearer abcdefgh12345678", token="sk-shoal-abc-def123456", within=[{"x": "sk-12345678901"}])
logging.getLogger("shoal.x").info("too quiet")
warnings.warn("of a warning")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise ValueError("of nobody: -----BEGIN PRIVATE KEY-----\\nMC4\\n-----END PRIVATE KEY-----")
"""


def test_libraries_warnings_and_uncaught_errors_come_the_same_way() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARIES, "json"], capture_output=True, text=True, check=False)
    lines = objects(done.stderr)
    assert [line["logger"] for line in lines] == ["uvicorn.error", "asyncio", "__main__", "py.warnings", "shoal.cli", "shoal.cli"]
    assert "KeyError" in lines[1]["exception"] and "ZeroDivisionError" in lines[4]["exception"] and "ValueError" in lines[5]["exception"]
    assert lines[2]["token"] == "sk-***" and "too quiet" not in done.stderr
    for secret in ("hunter22", "abcdefgh12345678", "def123456", "sk-1234", "MC4"):
        assert secret not in done.stderr


def test_tracebacks_for_people_show_no_local_variables() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARIES, "text"], capture_output=True, text=True, check=False)
    assert "of asyncio" in done.stderr and "KeyError" in done.stderr
    assert "A LOCAL VARIABLE'S VALUE" not in done.stderr and "hunter22" not in done.stderr
