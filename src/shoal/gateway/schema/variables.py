"""What a chat template is given besides the conversation: how much to think, and variables that a client names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from shoal.errors import InvalidRequest
from shoal.gateway.engine import ChatTokenizer
from shoal.text.chat import RESERVED

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""The grades of OpenAI's API."""

_GRADES = {"none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""The grades that templates with an effort setting know (gpt-oss)."""
_SWITCHES = ("enable_thinking", "thinking")
"""The names in templates that can only switch thinking on or off: Qwen3, GLM 4.5; DeepSeek V3.1, Granite."""
_MOST = 16 << 10  # bytes of a client's variables


def template_variables(tokenizer: ChatTokenizer, effort: Effort | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those that this model's template uses; others have no effect. Named variables take precedence over the effort.

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
    """Raises InvalidRequest for variables that are reserved, too large, or contain control tokens."""
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
