"""A plan is searched once; a cache that is damaged or cannot be written costs nothing but the search."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.executor import kept_plans
from shoal.executor.kept_plans import search_once
from shoal.placement.policy import Grid, Plan, search
from shoal.placement.workload import Workload
from tests.support.plans import GIB, moe, processor

WORK = Workload(128, 128, 8)


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """All that is really searched, with the cache in tmp_path."""
    found: list[Plan] = []

    def watched(*question: object) -> Plan:
        found.append(search(*question))  # pyright: ignore[reportArgumentType]
        return found[-1]

    monkeypatch.setattr(kept_plans, "search", watched)
    monkeypatch.setattr(kept_plans, "cache_dir", lambda: tmp_path)
    return found


def test_the_same_question_is_searched_once(searched: list[Plan]):
    first = search_once(moe(), processor(GIB), WORK)
    assert search_once(moe(), processor(GIB), WORK) == first == searched[0]
    assert len(searched) == 1
    search_once(moe(), processor(2 * GIB), WORK)
    search_once(moe(), processor(GIB), WORK, Grid((1,), (1,)))
    assert len(searched) == 3


def test_a_damaged_answer_is_searched_anew(searched: list[Plan], tmp_path: Path):
    first = search_once(moe(), processor(GIB), WORK)
    (kept,) = (tmp_path / "plans").iterdir()
    kept.write_text("{")
    assert search_once(moe(), processor(GIB), WORK) == first
    assert len(searched) == 2
    assert search_once(moe(), processor(GIB), WORK) == first
    assert len(searched) == 2


def test_a_cache_that_cannot_be_written_is_no_error(searched: list[Plan], tmp_path: Path):
    (tmp_path / "plans").write_text("a file where the folder should be")
    assert search_once(moe(), processor(GIB), WORK) == searched[0]


def test_the_oldest_answers_go(searched: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_plans, "_KEPT", 2)
    for answer in (1, 2, 3):
        search_once(moe(), processor(GIB), Workload(128, answer, 8))
    assert len(list((tmp_path / "plans").iterdir())) == 2
