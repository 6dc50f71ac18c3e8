"""An API to which the tests of this folder send their requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.text.tools import HERMES
from tests.support.engine import ByteTokenizer, FakeEngine, Script
from tests.support.responses import ResponsesApi


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Callable[..., ResponsesApi]]:
    made: list[ResponsesApi] = []

    def make(script: Script | None = None, *, tools: bool = False, **options: Any) -> ResponsesApi:
        engine = FakeEngine(script, **options)
        if tools:
            engine.tokenizer = ByteTokenizer(HERMES)
        made.append(ResponsesApi(engine, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.close()
