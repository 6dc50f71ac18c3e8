"""A conversation with a tool, over HTTP, with models of families that write calls and reasoning in their own ways: what comes
out of the stream, and what the model reads when all of it is sent back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from shoal.text.chat import ChatTemplate
from tests.support.app import app_of
from tests.support.engine import FakeEngine, prompt, says
from tests.support.family_templates import COMMAND_R7B, DEEPSEEK_R1, DEEPSEEK_V31, GLM_4, GLM_45, GPT_OSS, GRANITE_33, PHI_4_MINI, SMOLLM_3
from tests.support.http import CHAT, HI, events, fetch
from tests.support.tools import RESULT, TOOLS


@dataclass(frozen=True)
class Family:
    """answer: with a call of weather in Paris. reasoning, content: what it says besides. shown: what the model then reads."""

    template: str
    answer: str
    shown: str
    reasoning: str = ""
    content: str = ""


SEP = "<｜tool▁sep｜>"
FAMILIES = {
    "gpt-oss": Family(
        GPT_OSS,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}',
        "<|start|>assistant<|channel|>analysis<|message|>Hm.\n\nI look.<|end|><|start|>assistant to=functions.weather"
        '<|channel|>commentary json<|message|>{"city": "Paris"}<|call|><|start|>functions.weather to=assistant'
        '<|channel|>commentary<|message|>"rain"<|end|><|start|>assistant',
        "Hm.",
        "I look.",
    ),
    "glm 4.5": Family(
        GLM_45,
        "\n<think>Hm.</think>\nI look.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        "<|assistant|>\n<think>Hm.</think>\nI look.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "</tool_call><|observation|>\n<tool_response>\nrain\n</tool_response><|assistant|>",
        "Hm.",
        "I look.",
    ),
    "glm 4": Family(
        GLM_4,
        'weather\n{"city": "Paris"}',
        '<|assistant|>weather\n{"city": "Paris"}<|observation|>\nrain<|assistant|>',
    ),
    "deepseek r1": Family(
        DEEPSEEK_R1,
        f"Hm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function{SEP}weather\n"
        '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        f"<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function{SEP}weather\n"
        '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>rain<｜tool▁output▁end｜><｜tool▁outputs▁end｜><｜Assistant｜><think>\n",
        "Hm.",
    ),
    "deepseek v3.1": Family(
        DEEPSEEK_V31,
        f'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather{SEP}{{"city": "Paris"}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        f'<｜Assistant｜></think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather{SEP}{{"city": "Paris"}}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜><｜tool▁output▁begin｜>rain<｜tool▁output▁end｜>",
    ),
    "granite 3.3": Family(
        GRANITE_33,
        '<think>Hm.</think><|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]',
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|end_of_text|>\n'
        "<|start_of_role|>tool<|end_of_role|>rain<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "Hm.",
    ),
    "phi-4-mini": Family(
        PHI_4_MINI,
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|/tool_call|>',
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|/tool_call|><|end|><|tool|>rain<|end|><|assistant|>',
    ),
    "smollm3": Family(
        SMOLLM_3,
        '<think>\nHm.\n</think>\nI look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>\n<|im_start|>user\nrain<|im_end|>\n',
        "Hm.",
        "I look.",
    ),
    "command r7b": Family(
        COMMAND_R7B,
        '<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Paris"}}\n]<|END_ACTION|>',
        '<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Paris"}}\n',
        "Hm.",
    ),
}


def engine(family: Family) -> FakeEngine:
    known = ChatTemplate(family.template, {}, "m")
    return FakeEngine(says(family.answer), longest=10_000, tools=known.tools, reasoning=known.reasoning, template=family.template)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_comes_out_of_the_stream_and_goes_back_as_the_model_wrote_it(name: str) -> None:
    family = FAMILIES[name]
    answer = events(fetch(app_of(engine(family)), "POST", CHAT, json={"messages": HI, "tools": TOOLS, "stream": True}))
    choices = [choice for event in answer for choice in event["choices"]]
    deltas = [choice["delta"] for choice in choices]
    thought, said = ("".join(d.get(key) or "" for d in deltas) for key in ("reasoning_content", "content"))
    calls = [call for d in deltas for call in d.get("tool_calls", ())]
    made = {"name": calls[0]["function"]["name"], "arguments": "".join(call["function"]["arguments"] for call in calls)}
    assert (thought, said, made) == (family.reasoning, family.content, {"name": "weather", "arguments": '{"city": "Paris"}'})
    assert choices[-1]["finish_reason"] == "tool_calls"

    call: dict[str, Any] = {"id": calls[0]["id"], "type": "function", "function": made}
    message = {"role": "assistant", "content": said or None, "reasoning_content": thought, "tool_calls": [call]}
    again = engine(family)
    talk = [*HI, message, {**RESULT, "tool_call_id": call["id"]}]
    assert fetch(app_of(again), "POST", CHAT, json={"messages": talk, "tools": TOOLS}).status_code == 200
    assert family.shown in prompt(again)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_can_be_asked_for(name: str) -> None:
    family = FAMILIES[name]
    made = engine(family)
    answer = fetch(app_of(made), "POST", CHAT, json={"messages": HI, "tools": TOOLS, "tool_choice": "required"})
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert made.asked.sampling.grammar
