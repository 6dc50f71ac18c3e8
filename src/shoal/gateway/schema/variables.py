"""What a chat template is told beside the conversation: how much to think, and what a client gives it by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from shoal.errors import InvalidRequest
from shoal.gateway.engine import ChatTokenizer
from shoal.text.chat import RESERVED

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""As OpenAI's API grades it."""

_GRADES = {"none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""To those that templates know which ask for one (gpt-oss)."""
_SWITCHES = ("enable_thinking", "thinking")
"""What templates call it that only know on and off: Qwen3, GLM 4.5; DeepSeek V3.1, Granite."""
_MOST = 16 << 10  # bytes of what a client gives


def template_variables(tokenizer: ChatTokenizer, effort: Effort | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those that this model's template takes; others have no effect. What is given by name goes before the effort.

    Raises InvalidRequest.
    """
    takes = tokenizer.variables
    told: dict[str, Any] = {}
    if effort is not None:
        told = {"reasoning_effort": _GRADES[effort], **dict.fromkeys(_SWITCHES, effort not in ("none", "minimal"))}
    if given:
        told |= _checked(tokenizer, given)
    return {name: value for name, value in told.items() if name in takes}


def _checked(tokenizer: ChatTokenizer, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises InvalidRequest for what would not stay beside the conversation."""
    for name in given:
        if name in RESERVED:
            raise InvalidRequest(f"chat_template_kwargs cannot set '{name}': another part of the request sets it", "chat_template_kwargs")
    text = json.dumps(given, ensure_ascii=False)
    if len(text.encode()) > _MOST:
        raise InvalidRequest(f"chat_template_kwargs has more than {_MOST} bytes", "chat_template_kwargs")
    for token in tokenizer.special:
        if token and json.dumps(token, ensure_ascii=False)[1:-1] in text:
            raise InvalidRequest(f"chat_template_kwargs has the control token '{token}'", "chat_template_kwargs")
    return given
