"""Cache-Control of requests: what counts, and what is ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.serving.cache_control import CacheControl, cache_control


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("", CacheControl()),
        ("no-store", CacheControl(no_store=True)),
        ("No-Cache", CacheControl(no_cache=True)),
        ("only-if-cached", CacheControl(only_if_cached=True)),
        ("max-age=60", CacheControl(max_age=60)),
        ("max-age=0", CacheControl(max_age=0)),
        ('max-age="60"', CacheControl(max_age=60)),
        ("no-cache, no-store", CacheControl(no_store=True, no_cache=True)),
        (" no-cache ,\tonly-if-cached ", CacheControl(no_cache=True, only_if_cached=True)),
        (",,no-store,,", CacheControl(no_store=True)),
        ("max-age=60, max-age=5", CacheControl(max_age=60)),
        ("max-age=99999999999999999999999", CacheControl(max_age=2**31)),
        ("max-age=0000000000000000007", CacheControl(max_age=7)),
        (f"max-age={'9' * 5000}", CacheControl(max_age=2**31)),
        ("no-transform, max-stale=10, min-fresh=5, stale-if-error", CacheControl()),
    ],
)
def test_directives(said: str, meant: CacheControl) -> None:
    assert cache_control([said]) == meant


@pytest.mark.parametrize(
    "said",
    [
        "max-age",
        "max-age=",
        "max-age=-1",
        "max-age=1.5",
        "max-age=ten",
        "max-age=1e3",
        "max-age=١",
        "max-age = 5",
        "no-store no-cache",
        "no store",
        "=5",
        '"no-store"',
        'extension="a, no-store"',
        'extension="a, \\", no-store"',
    ],
)
def test_what_is_malformed_is_ignored(said: str) -> None:
    assert cache_control([said]) == CacheControl()


def test_what_is_malformed_spoils_nothing_beside_it() -> None:
    assert cache_control(["max-age=x, no-store", "no cache, only-if-cached"]) == CacheControl(no_store=True, only_if_cached=True)
    assert cache_control(['a="b, c", no-cache']) == CacheControl(no_cache=True)


def test_several_headers_are_one_list() -> None:
    assert cache_control(["no-store", "max-age=3"]) == CacheControl(no_store=True, max_age=3)


@given(st.lists(st.text(st.characters(max_codepoint=255)), max_size=3))
def test_any_text_is_read(values: list[str]) -> None:
    control = cache_control(values)
    assert control.max_age is None or 0 <= control.max_age <= 2**31


@pytest.mark.parametrize(
    ("control", "reads", "oldest"),
    [
        (CacheControl(), True, 100),
        (CacheControl(max_age=5), True, 5),
        (CacheControl(max_age=500), True, 100),
        (CacheControl(no_cache=True), False, 100),
        (CacheControl(no_store=True), False, 100),
        (CacheControl(only_if_cached=True), True, 100),
    ],
)
def test_what_may_be_given(control: CacheControl, reads: bool, oldest: float) -> None:
    assert (control.reads, control.oldest(100)) == (reads, oldest)
