"""Lists of texts or tokens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from shoal.gateway.schema.prompts import Prompts
from tests.support.app import app_of
from tests.support.engine import FakeEngine
from tests.support.http import fetch

PROMPTS: TypeAdapter[Any] = TypeAdapter(Prompts)


@pytest.mark.parametrize("good", ["a", [], ["a", "b"], [1, 2], [[1, 2], [3]], [[]]])
def test_each_kind_is_taken_as_it_is(good: Any) -> None:
    assert PROMPTS.validate_python(good, strict=True) == good


@pytest.mark.parametrize("bad", [[1] * 1000 + ["x"], ["x"] * 1000 + [1], [[1] * 1000 + ["x"]] * 3, [None] * 1000, [True] * 1000])
def test_of_a_list_that_is_none_of_them_each_kind_has_one_fault(bad: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        PROMPTS.validate_python(bad, strict=True)
    assert refused.value.error_count() == 4


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/embeddings", {"input": [1, 2]}), ("/api/embed", {"input": ["a"]}), ("/v1/responses/input_tokens", {"input": "a"})],
)
def test_no_body_is_read_in_the_event_loop(path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have a million tokens."""
    read: list[threading.Thread] = []
    validate: Any = BaseModel.model_validate.__func__

    def watched(cls: Any, *args: Any, **options: Any) -> Any:
        read.append(threading.current_thread())
        return validate(cls, *args, **options)

    monkeypatch.setattr(BaseModel, "model_validate", classmethod(watched))
    assert fetch(app_of(FakeEngine()), "POST", path, json=body).status_code == 200
    assert read and threading.main_thread() not in read
