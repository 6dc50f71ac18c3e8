"""A command line, variables, and a file with sections of models: which goes before which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from shoal.cli.configuration import _rows
from shoal.cli.options import loaded, settings
from shoal.config import HeadSettings, ModelSettings, Precision
from shoal.errors import ConfigError
from shoal.models.sections import section_of

Chosen = Callable[..., ModelSettings]

FILE = """\
[head]
context = 512
slots = 4
replicas = 2

[models.smollm2-135m]
context = 256
precision = "q8"
priority = 3

[models."tinyllama-1.1b"]
replicas = 1
"""


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chosen:
    """How a command with some words serves a model."""
    path = tmp_path / "shoal.toml"
    path.write_text(FILE)
    path.chmod(0o600)
    monkeypatch.setenv("SHOAL_CONFIG", str(path))
    app, got = typer.Typer(), list[HeadSettings]()

    @app.command()
    @settings(HeadSettings)
    def serve(settings: Any) -> None:
        got.append(settings)

    def run(*words: str, model: str = "smollm2-135m", **environment: str) -> ModelSettings:
        done = CliRunner().invoke(app, words, env=environment)
        if done.exception is not None:
            raise done.exception
        head = got.pop()
        return head.of_model(section_of(head.sections, model))

    return run


def test_a_models_section_goes_before_variables_and_head_and_a_flag_before_it(chosen: Chosen) -> None:
    plain = chosen()
    assert (plain.engine.context, plain.engine.precision, plain.engine.slots) == (256, Precision.Q8, 4)
    assert (plain.priority, plain.replicas) == (3, 2)
    varied = chosen(SHOAL_CONTEXT="1024", SHOAL_SLOTS="8")
    assert (varied.engine.context, varied.engine.slots) == (256, 8)
    flagged = chosen("--context", "2048", "--precision", "q4", SHOAL_CONTEXT="1024")
    assert (flagged.engine.context, flagged.engine.precision, flagged.priority) == (2048, Precision.Q4, 3)
    assert chosen("--context", "512").engine.context == 512, "also if it says what [head] says"


def test_each_model_has_its_own(chosen: Chosen) -> None:
    other = chosen(model="tinyllama-1.1b")
    assert (other.engine.context, other.replicas, other.priority) == (512, 1, 0)
    assert chosen("--replicas", "4", model="tinyllama-1.1b").replicas == 4
    third = chosen(model="qwen2.5-coder-1.5b")
    assert (third.engine.context, third.replicas) == (512, 2)


def test_what_contradicts_itself_is_told_when_the_command_begins(chosen: Chosen) -> None:
    path = loaded().path
    path.write_text(f"{FILE}batch-size = 4\nbatch-delay = 0.1\n")
    assert chosen(model="tinyllama-1.1b").gathered == 4
    with pytest.raises(ConfigError, match=rf'{path}:12: \[models\."tinyllama-1\.1b"\]: batch-size 4 would never be reached: slots is 2'):
        chosen("--slots", "2", model="smollm2-135m")


def test_config_show_lists_what_the_file_says_of_models(chosen: Chosen) -> None:
    rows = {(row["section"], row["key"]): row for row in _rows(loaded())}
    assert rows["models.tinyllama-1.1b", "replicas"] == {
        "section": "models.tinyllama-1.1b",
        "key": "replicas",
        "value": 1,
        "source": "file",
        "where": f"{loaded().path}:12",
    }
    assert [key for section, key in rows if section == "models.smollm2-135m"] == ["context", "precision", "priority"]
    assert not [key for section, key in rows if section == "models"]
