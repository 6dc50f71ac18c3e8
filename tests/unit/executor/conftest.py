"""Grammars over letters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shoal.executor.constraint import Grammars
from tests.support.letters import tokenizer


@pytest.fixture
def grammars() -> Iterator[Grammars]:
    made = Grammars(tokenizer, patience=None)
    yield made
    made.close()
