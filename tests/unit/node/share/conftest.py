"""A model file, and the machine that fetches it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.node.host_environment import HostEnvironment
from tests.support.share import CONTENT


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "there" / "a model.gguf"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def machine() -> Iterator[HostEnvironment]:
    made = HostEnvironment()
    yield made
    made.close()
