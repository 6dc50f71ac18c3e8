"""Machines that lack a runtime's packages, or the kernels: said by name before anything is fetched or joined."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.bare import python_without

pytestmark = [pytest.mark.real, pytest.mark.slow]

QUESTION = "Tell me about Paris."


@pytest.fixture(scope="module")
def kernels_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make run` installs."""
    return python_without(tmp_path_factory.mktemp("python"), ["onnx", "onnxruntime", "openvino"])


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_without(tmp_path_factory.mktemp("python"), ["onnx", "onnxruntime"], kernels=False)


@pytest.fixture(scope="module")
def onnx_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_without(tmp_path_factory.mktemp("python"), ["openvino"], kernels=False)


def shoal(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [python, "-m", "shoal", *arguments], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


def test_the_kernels_alone_answer(kernels_alone: Path) -> None:
    done = shoal(kernels_alone, "run", QUESTION, "--nodes", "1", "--threads", "1", "--max-tokens", "12")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


ONNX, OPENVINO = ("onnxruntime", "shoal[onnx]"), ("openvino", "shoal[openvino]")


@pytest.mark.parametrize(
    ("command", "lacking"),
    [(("run", "Hello"), ONNX), (("up", "--port", "0"), OPENVINO), (("join", "127.0.0.1:1"), ONNX), (("bench",), OPENVINO)],
    ids=["run", "up", "join", "bench"],
)
def test_a_runtime_that_is_not_installed_is_named_with_its_extra(
    kernels_alone: Path, command: tuple[str, ...], lacking: tuple[str, str]
) -> None:
    runtime, extra = lacking
    done = shoal(kernels_alone, *command, "--runtime", runtime)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == (
        f"error: --runtime {runtime} cannot be used here: not installed: onnx and {runtime}; pip install '{extra}'"
    )


@pytest.mark.parametrize("command", [("run", "Hello"), ("up", "--port", "0"), ("join", "127.0.0.1:1")], ids=lambda command: command[0])
def test_a_machine_with_nothing_that_runs_layers_says_so_at_once(nothing: Path, command: tuple[str, ...]) -> None:
    done = shoal(nothing, *command)
    assert done.returncode == 2
    assert "no runtime for layers" in done.stderr
    assert "shoal[onnx]" in done.stderr and "g++" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_says_what_is_lacking(nothing: Path, kernels_alone: Path) -> None:
    done = shoal(nothing, "doctor")
    assert done.returncode == 1
    assert "nothing here runs layers" in done.stdout
    done = shoal(kernels_alone, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note  onnxruntime  optional; not installed: onnx and onnxruntime; pip install 'shoal[onnx]'" in done.stdout


def test_the_extra_answers_where_the_kernels_are_missing(onnx_alone: Path) -> None:
    done = shoal(onnx_alone, "run", QUESTION, "--nodes", "1", "--threads", "1", "--max-tokens", "12")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
