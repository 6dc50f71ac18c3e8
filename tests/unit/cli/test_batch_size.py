"""How many requests of a batch run at once: by strategy, by profile, and never more than there are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli import batch_size
from shoal.cli.batch_size import MOST, Work, chosen, fitted
from shoal.config import EngineSettings, NodeSettings
from shoal.executor import kept_plans
from tests.support.plans import moe

MODEL: Any = SimpleNamespace(spec=None, weights=None)
ENGINE, NODE = EngineSettings(), NodeSettings(memory="2GiB")


def work(requests: int, characters: int = 600, answer: int = 100) -> Work:
    made = Work()
    for _ in range(requests):
        made.add(characters, answer)
    return made


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture that is larger than the node's memory, on a machine that was not measured."""
    monkeypatch.setattr(batch_size, "model_cost", lambda *description: moe())
    monkeypatch.setattr(batch_size, "remembered", lambda: None)
    monkeypatch.setattr(kept_plans, "cache_dir", lambda: tmp_path)


def test_all_run_at_once_where_nothing_was_measured():
    assert chosen(MODEL, ENGINE, NODE, 1, work(40)) == 40
    assert chosen(MODEL, ENGINE, NODE, 1, work(4000)) == MOST
    assert chosen(MODEL, ENGINE, NODE, 1, work(4000), "throughput") == MOST


def test_few_run_where_the_first_answer_is_to_be_soon():
    assert chosen(MODEL, ENGINE, NODE, 1, work(40), "interactive") == 4
    assert chosen(MODEL, ENGINE, NODE, 1, work(1), "interactive") == 1


def test_a_profile_says_how_many():
    """Many share what is read from the disk, as long as their keys and values leave memory for weights."""
    short, long = (chosen(MODEL, ENGINE, NODE, 1, work(400, characters), "auto", "zen4-2c") for characters in (300, 6000))
    assert 1 < long < short <= MOST
    assert chosen(MODEL, ENGINE, NODE, 1, work(7), "auto", "zen4-2c") <= 7


def test_slots_that_were_given_are_the_most():
    assert chosen(MODEL, EngineSettings(slots=5), NODE, 1, work(400)) == 5


def test_several_nodes_on_a_machine_have_their_memory_together():
    small = NodeSettings(memory="700MiB")
    assert chosen(MODEL, ENGINE, small, 4, work(400, 6000), "auto", "zen4-2c") >= chosen(
        MODEL, ENGINE, small, 1, work(400, 6000), "auto", "zen4-2c"
    )


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 900)), min_size=1, max_size=50), st.integers(1, 64))
def test_there_is_room_for_what_runs_at_once_and_for_the_longest(sizes: list[tuple[int, int]], size: int):
    asked = Work()
    for characters, answer in sizes:
        asked.add(characters, answer)
    made = fitted(ENGINE, asked, size)
    assert made.slots == size
    assert made.kv_tokens >= size * (asked.prompts + asked.answers) // len(sizes)
    assert made.kv_tokens >= min(asked.longest, ENGINE.context)
    assert fitted(EngineSettings(kv_tokens=4096), asked, size).kv_tokens == 4096
