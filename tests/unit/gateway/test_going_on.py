"""Answers that go on from a text, behind templates that begin a thought: the text is no part of the thought."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.text.reasoning import THINK
from tests.support.app import app_of
from tests.support.engine import FakeEngine, says
from tests.support.http import fetch

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: <think>{{ '\\n' }}"
HI = {"role": "user", "content": "Hi"}
THOUGHT = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "Well, "}]


@pytest.mark.parametrize(
    ("path", "body", "thought"),
    [
        ("/v1/messages", {"max_tokens": 99, "messages": [HI, {"role": "assistant", "content": "Well, "}]}, ""),
        ("/v1/messages", {"max_tokens": 99, "messages": [HI, {"role": "assistant", "content": THOUGHT}]}, "Hm."),
        ("/api/chat", {"stream": False, "messages": [HI, {"role": "assistant", "content": "Well, "}]}, ""),
        ("/api/chat", {"stream": False, "messages": [HI, {"role": "assistant", "content": "Well, ", "thinking": "Hm."}]}, "Hm."),
    ],
)
def test_the_thought_is_closed_first(path: str, body: dict[str, Any], thought: str) -> None:
    engine = FakeEngine(says("hello."), reasoning=THINK, template=TEMPLATE)
    answer = fetch(app_of(engine), "POST", path, json={"model": "fake", **body}).json()
    assert engine.tokenizer.decode(engine.asked.prompt) == f"user: Hi\nassistant: <think>\n{thought}\n</think>\n\nWell, "
    said = answer["message"] if path == "/api/chat" else answer["content"][0]
    assert (said.get("content") or said["text"]) == "hello." and "thinking" not in said
