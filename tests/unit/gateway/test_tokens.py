"""/tokenize and /detokenize, as vLLM's clients ask them; the list of models, as the SDK reads it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Model

from shoal.errors import NotReady
from shoal.text.tools import HERMES
from tests.support.app import app_of
from tests.support.engine import END, ByteTokenizer, FakeEngine
from tests.support.http import fetch


def post(path: str, body: dict[str, Any], status: int = 200, engine: FakeEngine | None = None) -> dict[str, Any]:
    answer = fetch(app_of(engine or FakeEngine()), "POST", path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json() if status == 200 else answer.json()["error"]


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_text_becomes_tokens_and_back(prefix: str):
    told = post(f"{prefix}/tokenize", {"prompt": "Hé", "model": "fake"})
    assert told == {"count": 3, "max_model_len": 1000, "tokens": list("Hé".encode()), "token_strs": None}
    assert post(f"{prefix}/detokenize", {"tokens": told["tokens"]}) == {"prompt": "Hé"}


@settings(max_examples=50)
@given(text=st.text(st.characters(codec="utf-8"), max_size=20))
def test_any_text_survives_the_way_there_and_back(text: str):
    assert post("/detokenize", {"tokens": post("/tokenize", {"prompt": text})["tokens"]}) == {"prompt": text}


def test_a_conversation_becomes_what_the_model_would_read():
    body: dict[str, Any] = {"messages": [{"role": "developer", "content": "A"}, {"role": "user", "content": "B"}]}
    assert bytes(post("/tokenize", body)["tokens"]) == b"system: A\nuser: B\n"
    assert bytes(post("/tokenize", {**body, "add_generation_prompt": False})["tokens"]) == b"system: A\nuser: B\n(no answer)"


def test_tools_are_part_of_what_it_reads():
    engine = FakeEngine()
    engine.tokenizer = ByteTokenizer(HERMES)
    tools = [{"type": "function", "function": {"name": "weather"}}]
    told = post("/tokenize", {"messages": [{"role": "user", "content": "B"}], "tools": tools}, engine=engine)
    assert b'"name": "weather"' in bytes(told["tokens"])


def test_tokens_are_shown_as_text_where_that_is_asked_for():
    assert post("/tokenize", {"prompt": "Hé", "return_token_strs": True})["token_strs"] == ["H", "�", "�"]


def test_special_tokens_are_part_of_a_text():
    assert post("/detokenize", {"tokens": [72, END]}) == {"prompt": "H<end>"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "A", "messages": [{"role": "user", "content": "B"}]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "A", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ("/tokenize", {"prompt": "A", "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"prompt": "A", "nonsense": 1}, "nonsense"),
        ("/detokenize", {"tokens": [END + 1]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(path: str, body: dict[str, Any], param: str):
    assert post(path, body, 400)["param"] == param


def test_another_models_tokens_are_not_known():
    for path, body in (("/tokenize", {"prompt": "A"}), ("/detokenize", {"tokens": []})):
        assert post(path, {**body, "model": "other"}, 404)["code"] == "model_not_found"


def test_the_sdk_reads_the_models_and_how_much_they_take():
    listed = fetch(app_of(FakeEngine()), "GET", "/v1/models").json()
    (card,) = listed["data"]
    assert Model.model_validate(card, strict=True).id == "fake" and listed["object"] == "list"
    assert card["max_model_len"] == 1000
    assert fetch(app_of(FakeEngine()), "GET", "/v1/models/fake").json() == card


class Loading(FakeEngine):
    def longest(self) -> int:
        raise NotReady("loading")


def test_a_model_that_is_not_ready_is_listed_without_its_length():
    (card,) = fetch(app_of(Loading()), "GET", "/v1/models").json()["data"]
    assert card["max_model_len"] is None


def test_who_tokenises_for_itself_is_told_how_texts_end() -> None:
    told = fetch(app_of(FakeEngine()), "GET", "/tokenizer_info").json()
    assert told == {"tokenizer_class": "shoal", "bos_token": None, "eos_token": "<end>", "pad_token": None, "chat_template": None}
