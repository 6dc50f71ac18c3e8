"""Conversations that go on from what was kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests.support.engine import FakeEngine, says
from tests.support.responses import PATH, ResponsesApi, text


def test_a_conversation_goes_on_from_what_was_kept(api: Callable[..., ResponsesApi]):
    one = api(says("Hello"))
    first = one.create("Hi", instructions="Be brief")
    second = one.create("And?", previous_response_id=first["id"])
    assert one.prompt() == "user: Hi\nassistant: Hello\nuser: And?\n"  # instructions hold for one response
    assert second["previous_response_id"] == first["id"]
    one.stream("More", previous_response_id=second["id"], instructions="Now in French")
    lines = ["system: Now in French", "user: Hi", "assistant: Hello", "user: And?", "assistant: Hello", "user: More"]
    assert one.prompt().splitlines() == lines


def test_an_answer_that_was_cut_can_be_gone_on_from(api: Callable[..., ResponsesApi]):
    one = api(says("Hello"))
    cut = one.create("Hi", max_output_tokens=3)
    one.create("Go on", previous_response_id=cut["id"])
    assert one.prompt() == "user: Hi\nassistant: Hel\nuser: Go on\n"


def test_a_stream_is_kept_before_its_end_is_told(api: Callable[..., ResponsesApi]):
    one = api(says("Hello"))
    id = one.stream()[-1]["response"]["id"]
    assert text(one.fetch("GET", f"{PATH}/{id}").json()) == "Hello"


def test_conversations_outlive_the_server(api: Callable[..., ResponsesApi]):
    made = api(says("Hello")).create("Hi")
    later = api()
    later.create("And?", previous_response_id=made["id"])
    assert later.prompt() == "user: Hi\nassistant: Hello\nuser: And?\n"


def test_what_is_not_to_be_stored_is_not(api: Callable[..., ResponsesApi], tmp_path: Path):
    one = api()
    made = one.create(store=False)
    assert not made["store"] and list(tmp_path.glob("responses*")) == []
    one.refused(404, "GET", f"{PATH}/{made['id']}")
    error = one.refused(400, json={"input": "Hi", "previous_response_id": made["id"]})
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")


def test_where_none_are_kept_a_response_says_so(tmp_path: Path):
    one = ResponsesApi(FakeEngine(), tmp_path, responses=0)
    try:
        assert one.create(store=True)["store"] is False
        assert list(tmp_path.glob("responses*")) == []
    finally:
        one.close()


def test_a_conversation_whose_beginning_was_deleted_says_so(api: Callable[..., ResponsesApi]):
    one = api()
    first = one.create("Hi")
    second = one.create("And?", previous_response_id=first["id"])
    one.fetch("DELETE", f"{PATH}/{first['id']}")
    error = one.refused(400, json={"input": "More", "previous_response_id": second["id"]})
    assert error["code"] == "previous_response_not_found" and first["id"] in error["message"]


def test_an_item_may_be_referred_to(api: Callable[..., ResponsesApi]):
    one = api(says("Hello"))
    made = one.create("Hi")
    one.create(
        [{"role": "user", "content": "Hi"}, {"type": "item_reference", "id": made["output"][0]["id"]}, {"role": "user", "content": "?"}]
    )
    assert one.prompt() == "user: Hi\nassistant: Hello\nuser: ?\n"
    assert "msg_nonsense_0" in one.refused(400, json={"input": [{"type": "item_reference", "id": "msg_nonsense_0"}]})["message"]


def test_a_chosen_id_is_the_responses_and_not_given_twice(api: Callable[..., ResponsesApi]):
    one, mine = api(), {"X-Request-Id": "mine:1"}
    assert one.fetch("POST", PATH, json={"input": "Hi"}, headers=mine).json()["id"] == "mine:1"
    one.run(asyncio.sleep(0))
    assert one.refused(409, json={"input": "Hi"}, headers=mine)["code"] == "id_taken"
    made = one.create([{"type": "item_reference", "id": "msg_mine:1_0"}, {"role": "user", "content": "?"}])
    assert made["status"] == "completed"
