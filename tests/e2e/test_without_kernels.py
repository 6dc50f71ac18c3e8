"""shoal where nothing could be compiled: it says so in a line, and how to mend it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shoal

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """An environment in which shoal has no extension."""
    shutil.copytree(Path(shoal.__file__).parent, tmp_path / "shoal", ignore=shutil.ignore_patterns("_kernels*", "__pycache__"))
    return {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "80"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment)


def test_a_run_says_it_in_one_line(without: dict[str, str]) -> None:
    pytest.importorskip("onnxruntime", reason="without it there is nothing that runs layers")
    done = run(without, "run", "Say hello.", "--nodes", "1", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    first, *rest = done.stderr.splitlines()
    assert first.startswith("slow: ") and "no C++ compiler when shoal was installed" in first
    assert "--force-reinstall --no-cache-dir" in first
    assert not any("kernels" in line for line in rest)


def test_the_doctor_calls_it_wrong(without: dict[str, str]) -> None:
    done = run(without, "doctor")
    assert done.returncode == 1
    assert any(line.startswith("wrong kernels") and "apt install g++" in line for line in done.stdout.splitlines())


def test_an_extension_that_cannot_be_loaded_is_another_matter(without: dict[str, str]) -> None:
    (Path(without["PYTHONPATH"]) / "shoal" / "native" / "_kernels.abi3.so").write_bytes(b"")
    done = run(without, "doctor")
    assert "file too short" in done.stdout


def test_the_runtime_asked_for_is_refused(without: dict[str, str]) -> None:
    done = run(without, "join", "127.0.0.1:1", "--runtime", "native")
    assert done.returncode == 2
    assert "--runtime native cannot be used here: the compiled kernels are missing" in done.stderr
