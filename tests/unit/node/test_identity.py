"""What a head says its answers depend on: two that may differ are never the same."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from shoal.config import EngineSettings
from shoal.models.description import Description
from shoal.node import model_engine
from shoal.node.model_engine import identity_of


def described(folder: Path) -> Description:
    spec: Any = None  # its sizes are in the files
    return Description("tiny", str(folder), folder, spec, None, None)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")


def identity(model: Description, **engine: Any) -> str:
    return identity_of(EngineSettings(**engine), model)


def test_the_same_head_started_again_is_the_same(tmp_path: Path) -> None:
    assert identity(described(tmp_path)) == identity(described(tmp_path), slots=3, context=100, queue=5)


@pytest.mark.parametrize("engine", [{"precision": "q4"}, {"kv_type": "fp32"}, {"activations": "int8"}])
def test_other_numbers_are_another_engine(tmp_path: Path, engine: dict[str, str]) -> None:
    assert identity(described(tmp_path), **engine) != identity(described(tmp_path))


def test_a_file_that_was_changed_is_another_model(tmp_path: Path) -> None:
    before = identity(described(tmp_path))
    file = tmp_path / "model.safetensors"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    touched = identity(described(tmp_path))
    file.write_bytes(b"other weights")
    assert len({before, touched, identity(described(tmp_path))}) == 3


def test_another_version_or_reference_is_another_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = described(tmp_path)
    before = identity(model)
    assert identity(dataclasses.replace(model, reference="hf:a/b@1234")) != before
    monkeypatch.setattr(model_engine, "__version__", "0.0.0")
    assert identity(model) != before
