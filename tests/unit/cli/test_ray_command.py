"""`shoal ray` where there is no Ray, or no cluster of it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from shoal.cli import ray
from shoal.cli.app import app
from shoal.errors import ConfigError


@pytest.mark.parametrize("words", [["up"], ["scale", "3"], ["down"]], ids=" ".join)
def test_without_ray_it_says_how_to_get_it(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["ray", *words])
    assert isinstance(done.exception, ConfigError) and "pip install 'shoal[ray]'" in str(done.exception)


@pytest.mark.parametrize(
    "words", [["up", "--nodes", "0"], ["scale", "0"], ["up", "--threads", "0"], ["up", "--host", "10.0.0.1"]], ids=" ".join
)
def test_what_cannot_be_is_refused(words: list[str]) -> None:
    assert CliRunner().invoke(app, ["ray", *words]).exit_code == 2
