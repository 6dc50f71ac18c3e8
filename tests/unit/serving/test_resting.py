"""Which models are unloaded: that rest, or that were used least where another needs room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.serving.resting import Resting, least_used, rested

MODELS = st.lists(
    st.builds(Resting, st.sampled_from("abcdefgh"), st.floats(0, 100), st.booleans(), st.booleans(), st.integers(-1, 1)),
    max_size=8,
    unique_by=lambda m: m.name,
)


@given(MODELS, st.floats(0.1, 50), st.floats(0, 200))
def test_who_rests_has_nothing_to_do_and_was_not_asked_for(models: list[Resting], idle: float, now: float) -> None:
    gone = rested(models, idle, now)
    for model in models:
        assert (model.name in gone) == (not model.busy and now - model.used >= idle)


@given(MODELS)
def test_the_model_that_makes_room_is_of_the_lowest_priority_and_was_used_before_all_others_of_it(models: list[Resting]) -> None:
    for wanting in models:
        found = least_used(models, wanting.name)
        able = [m for m in models if m.name != wanting.name and not m.busy and not m.waiting]
        if found is None:
            assert all((model.priority, model.used) > (wanting.priority, wanting.used) for model in able)
        else:
            (one,) = [model for model in able if model.name == found]
            assert one.priority == min(model.priority for model in able) <= wanting.priority
            assert one.used == min(model.used for model in able if model.priority == one.priority)
            assert one.priority < wanting.priority or one.used <= wanting.used


def test_a_model_goes_for_one_of_a_higher_priority_and_never_for_one_of_a_lower() -> None:
    high, low = Resting("high", 1.0, priority=1), Resting("low", 9.0)
    assert least_used([high, low], "high") == "low", "though it was asked for later"
    assert least_used([high, low], "low") is None, "though it was asked for before"
    assert least_used([high, low._replace(busy=True)], "high") is None


def test_two_models_do_not_push_each_other_out_by_turns() -> None:
    """The one that was asked for later stays, however short the other is."""
    a, b = Resting("a", 1.0, waiting=True), Resting("b", 2.0)
    assert least_used([a, b], "a") is None
    assert least_used([a._replace(used=3.0), b], "a") == "b"


def test_a_model_that_is_not_there_needs_no_room() -> None:
    assert least_used([Resting("a", 1.0)], "gone") is None and least_used([], "a") is None
