"""Whether a model is told to think, as each API asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.gateway.schema.variables import template_variables
from shoal.text.reasoning import THINK
from tests.support.app import app_of
from tests.support.engine import FakeEngine
from tests.support.http import fetch
from tests.support.templates import GRADED, THINKS

HI = [{"role": "user", "content": "Hi"}]
ANTHROPIC: list[tuple[dict[str, Any], str]] = [
    ({}, "none"),
    ({"thinking": {"type": "disabled"}}, "none"),
    ({"output_config": {"effort": "high"}}, "none"),
    ({"thinking": {"type": "adaptive"}}, "medium"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "medium"),
    ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, "high"),
]
OLLAMA = [({"think": False}, "none"), ({"think": True}, "medium"), ({"think": "high"}, "high"), ({}, None), ({"think": None}, None)]


def prompt(template: str, path: str, body: dict[str, Any]) -> str:
    engine = FakeEngine(reasoning=THINK, template=template)
    answer = fetch(app_of(engine), "POST", path, json={"model": "fake", **body})
    assert answer.status_code == 200, answer.text
    return engine.tokenizer.decode(engine.asked.prompt)


def counted(template: str, body: dict[str, Any]) -> int:
    engine = FakeEngine(reasoning=THINK, template=template)
    return fetch(app_of(engine), "POST", "/v1/messages/count_tokens", json={"messages": HI, **body}).json()["input_tokens"]


@pytest.mark.parametrize(("fields", "effort"), ANTHROPIC)
def test_messages_are_answered_without_thinking_unless_it_is_asked_for(fields: dict[str, Any], effort: str) -> None:
    body = {"messages": HI, "max_tokens": 9, **fields}
    told = "user: Hi\n" + "(no thinking)" * (effort == "none")
    assert prompt(THINKS, "/v1/messages", body) == told
    assert counted(THINKS, fields) == len(told)
    graded = "user: Hi\n" + ("low" if effort == "none" else effort)
    assert prompt(GRADED, "/v1/messages", body) == graded
    assert counted(GRADED, fields) == len(graded)


@pytest.mark.parametrize(("path", "body"), [("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "Hi"})])
@pytest.mark.parametrize(("fields", "effort"), OLLAMA)
def test_ollamas_switch(path: str, body: dict[str, Any], fields: dict[str, Any], effort: str | None) -> None:
    assert prompt(THINKS, path, {**body, **fields}) == "user: Hi\n" + "(no thinking)" * (effort == "none")
    assert prompt(GRADED, path, {**body, **fields}) == "user: Hi\n" + ("low" if effort == "none" else effort or "")


def test_where_nothing_is_given_by_name_no_control_token_is_looked_for() -> None:
    tokenizer: Any = FakeEngine(template=THINKS).tokenizer
    tokenizer.special = None
    assert template_variables(tokenizer, "none", None) == template_variables(tokenizer, "none", {}) == {"enable_thinking": False}
