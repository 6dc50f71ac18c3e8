"""Chat templates: what transformers renders, refusals as errors of the request, and no way out of the sandbox."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from shoal.errors import CorruptModel, InvalidRequest
from shoal.text.chat import ChatTemplate
from shoal.text.tools import HERMES
from tests.support.templates import CHATML, QWEN

BOS, EOS = "<s>", "</s>"
SPECIAL = {"bos_token": BOS, "eos_token": EOS}
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
)

USER = {"role": "user", "content": "naïve <b>&amp; 🦙</b>"}
TALK = [USER, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "no"}]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}],
}


def render(source: str, messages: list[dict[str, Any]]) -> str:
    return ChatTemplate(source, SPECIAL, "m").render(messages)


@pytest.mark.parametrize("messages", [[USER], TALK, [USER, CALL, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]])
@pytest.mark.parametrize("source", [CHATML, ZEPHYR, QWEN])
def test_as_transformers(source: str, messages: list[dict[str, Any]]) -> None:
    theirs, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, bos_token=BOS, eos_token=EOS)
    assert render(source, messages) == theirs[0]


TOOL = {"type": "function", "function": {"name": "f", "description": "Does “f”.", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("tools", [None, [TOOL, TOOL]])
@pytest.mark.parametrize("source", [CHATML, QWEN, "{{ tools is none }} {{ documents is none }} {{ tools is defined }}"])
def test_tools_as_transformers(source: str, tools: list[Any] | None) -> None:
    theirs, _ = render_jinja_template([[USER]], tools=tools, chat_template=source, add_generation_prompt=True, bos_token=BOS, eos_token=EOS)
    assert ChatTemplate(source, SPECIAL, "m").render([USER], tools or ()) == theirs[0]


def test_a_template_knows_the_format_that_it_teaches() -> None:
    assert [ChatTemplate(source, SPECIAL, "m").tools for source in (CHATML, QWEN)] == [None, HERMES]


def test_a_tool_call() -> None:
    assert '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>' in render(QWEN, [USER, CALL])


def test_today() -> None:
    assert re.fullmatch(r"\d{4}", render("{{ strftime_now('%Y') }}", []))
    assert int(render("{{ strftime_now('%Y') }}", [])) >= datetime(2024, 1, 1).year


def test_loops_can_be_left() -> None:
    assert (
        render("{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}", TALK) == USER["content"]
    )


def test_what_the_template_refuses() -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages: roles must alternate") as caught:
        render(MISTRAL, [USER, USER])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": None}], [{"role": "user", "content": 5}]],
)
def test_messages_that_cannot_be_rendered(messages: list[dict[str, Any]]) -> None:
    source = (
        "{% if messages[0]['role'] == 'user' %}{{ 'x' + messages[0]['content'] }}{% else %}{{ messages[0].role.strip() + 1 }}{% endif %}"
    )
    with pytest.raises(InvalidRequest, match="cannot render these messages") as caught:
        render(source, messages)
    assert caught.value.param == "messages"


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(x=1) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '%s' | format(messages.__class__.__base__) }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ self.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    messages = [dict(USER)]
    try:
        out = render(source, messages)
    except InvalidRequest:
        out = ""
    assert "class" not in out.replace("classmethod", "class")
    assert messages == [USER]


@pytest.mark.parametrize("source", ["{% if %}", "{{ 1 +", "{% endfor %}", "{{ x | no_such_filter }}"])
def test_templates_that_are_none(source: str) -> None:
    with pytest.raises(CorruptModel, match="no valid Jinja"):
        ChatTemplate(source, SPECIAL, "m")


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 'x' * (10 ** 100) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ (10 ** 400) | float }}{{ 1.0 * 10 ** 400 }}",
        "{{ messages[0].content.index('z') }}",
        "{{ strftime_now(5) }}",
        "{{ cycler() }}",
        "{{ 1e999 | int }}",
        "{{ 'a' | truncate(-5) }}",
    ],
)
def test_templates_that_fail(source: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate(source, {}, "m").render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    ["{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{{ " + "1" * 5000 + " }}", "{% for a in b %}" * 30 + "{% endfor %}" * 30],
    ids=["brackets", "digits", "loops"],
)
def test_templates_that_are_no_program(source: str) -> None:
    with pytest.raises(CorruptModel, match="no valid Jinja"):
        ChatTemplate(source, {}, "m")


def test_the_rest_of_transformers_template_environment() -> None:
    source = "{% generation %}{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}{% endgeneration %}"
    assert ChatTemplate(source, {}, "m").render([{"b": 1, "a": 2}]) == '[{"a":2,"b":1}]'
