"""shoal where nothing could be compiled: it says so in a line, and how to mend it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.bare import python_without

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter whose shoal has no extension."""
    return python_without(tmp_path / "environment", (), kernels=False)


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "shoal", *arguments]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment)


def test_a_run_says_it_in_one_line(python: Path) -> None:
    pytest.importorskip("onnxruntime", reason="without it there is nothing that runs layers")
    done = run(python, "run", "Say hello.", "--nodes", "1", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    first, *rest = done.stderr.splitlines()
    assert first.startswith("slow: ") and "no C++ compiler when shoal was installed" in first
    assert "--force-reinstall --no-cache-dir" in first
    assert not any("kernels" in line for line in rest)


def test_the_doctor_calls_it_wrong(python: Path) -> None:
    done = run(python, "doctor")
    assert done.returncode == 1
    assert any(line.startswith("wrong kernels") and "apt install g++" in line for line in done.stdout.splitlines())


def test_an_extension_that_cannot_be_loaded_is_another_matter(python: Path) -> None:
    (native,) = python.parents[1].glob("lib/python*/site-packages/shoal/native")
    (native / "_kernels.abi3.so").write_bytes(b"")
    done = run(python, "doctor")
    assert "file too short" in done.stdout


def test_the_runtime_asked_for_is_refused(python: Path) -> None:
    done = run(python, "join", "127.0.0.1:1", "--runtime", "native")
    assert done.returncode == 2
    assert "--runtime native cannot be used here: the compiled kernels are missing" in done.stderr
