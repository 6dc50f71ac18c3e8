"""Whoever can be asked for an expert is, with as few workers as a greedy choice needs, and the idle ones first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.expert_holders import ExpertHolder, Holders

LAYER = 3
EXPERTS = st.sets(st.integers(0, 11))


@st.composite
def any_holders(draw: st.DrawFn) -> Holders:
    tables = draw(st.dictionaries(st.sampled_from("abcde"), EXPERTS, max_size=5))
    holders = Holders({name: {LAYER: frozenset(experts), LAYER + 1: frozenset(range(12))} for name, experts in tables.items()})
    for name in holders:
        holder = holders[name]
        holder.outstanding, holder.away = draw(st.integers(0, 3)), draw(st.booleans())
        holder.fenced = draw(st.sampled_from(["", "", "it lied"]))
        holder.abandoned = dict.fromkeys(draw(st.sets(st.integers(1, 3), max_size=1)), (0.0, 1.0))
    return holders


def has(holders: Holders, name: str) -> frozenset[int]:
    return frozenset(holders[name].held[LAYER])


@given(any_holders(), EXPERTS, st.sets(st.sampled_from("abcde")))
def test_whatever_can_be_had_is_asked_once_of_one_who_has_it(holders: Holders, wanted: set[int], without: set[str]) -> None:
    usable = {name for name in holders if not holders[name].away and not holders[name].fenced} - without
    chosen = holders.choose(LAYER, sorted(wanted), without)
    assert set(chosen) <= usable
    assert all(experts and set(experts) <= has(holders, name) for name, experts in chosen.items())
    asked = [expert for experts in chosen.values() for expert in experts]
    assert sorted(asked) == sorted(wanted & {expert for name in usable for expert in has(holders, name)})
    assert all(experts == sorted(experts) for experts in chosen.values())


@given(any_holders(), EXPERTS)
def test_the_worker_with_most_of_what_is_left_is_next_and_of_equals_the_idlest(holders: Holders, wanted: set[int]) -> None:
    for name in holders:
        holders[name].abandoned.clear()
    left, open_to = set(wanted), {name for name in holders if holders[name].usable}
    for name, experts in holders.choose(LAYER, sorted(wanted)).items():
        most = max(len(left & has(holders, other)) for other in open_to)
        equals = {other for other in open_to if len(left & has(holders, other)) == most}
        assert len(experts) == most and name in equals
        assert holders[name].outstanding == min(holders[other].outstanding for other in equals)
        left -= set(experts)
        open_to.remove(name)


@given(any_holders(), EXPERTS)
def test_one_that_does_not_answer_is_asked_only_for_what_nobody_else_has(holders: Holders, wanted: set[int]) -> None:
    answering = {expert for name in holders if holders[name].usable and not holders[name].abandoned for expert in has(holders, name)}
    for name, experts in holders.choose(LAYER, sorted(wanted)).items():
        if holders[name].abandoned:
            assert not answering & set(experts)


def test_a_choice_does_not_depend_on_the_order_of_the_workers() -> None:
    tables = {name: {LAYER: frozenset({1, 2})} for name in "abc"}
    assert len({str(Holders({name: tables[name] for name in order}).choose(LAYER, [1, 2])) for order in ("abc", "cab", "bca")}) == 1


def test_a_layer_that_nobody_has_is_asked_of_nobody() -> None:
    assert Holders({"a": {1: frozenset({1})}}).choose(2, [1]) == {}
    assert Holders({}).choose(2, [1]) == {}


def test_experts_are_those_that_anybody_holds_reachable_or_not() -> None:
    holders = Holders({"a": {1: frozenset({1}), 2: frozenset({5})}, "b": {1: frozenset({2})}})
    holders["a"].away = True
    assert holders.experts == {1: {1, 2}, 2: {5}}
    holders["b"].refused(1, [2], now=0.0)
    assert holders.experts == {1: {1}, 2: {5}}
    holders["b"].refused(7, [2], now=1.0)
    assert holders["b"].held == {1: set(), 7: set()}
    holders.forgive(4.9)
    assert holders["b"].held == {1: set(), 7: set()}
    holders.forgive(5.0)
    assert holders["b"].held == {1: {2}, 7: set()}


def test_who_is_away_or_does_not_answer_may_come_back() -> None:
    holders = Holders({"a": {1: frozenset({1})}, "b": {1: frozenset({2})}})
    assert not holders.may_come_back(1, [1, 2]), "who is here has said what it has to say"
    holders["a"].away = True
    assert holders.may_come_back(1, [1]) and not holders.may_come_back(1, [2]) and not holders.may_come_back(1, [1], ["a"])
    holders["b"].abandoned[7] = 0.0, 1.0
    assert holders.may_come_back(1, [2])
    holders["b"].fenced = "it lied"
    assert not holders.may_come_back(1, [2])


def test_a_worker_is_late_after_twice_its_usual_time_once_that_is_known() -> None:
    holder = ExpertHolder({})
    for count in range(16):
        assert holder.late is None
        holder.answered(0.1 if count else 9.0)  # one answer that took long is not usual
    assert holder.late == 18.0  # but one in sixteen is
    for _ in range(16):
        assert holder.late == 18.0  # which is looked at again from time to time
        holder.answered(0.1)
    assert holder.late == 0.2
    for _ in range(128):  # the last ones count
        holder.answered(0.5)
    assert holder.late == 1.0


def test_a_worker_says_why_it_is_not_asked() -> None:
    holder = ExpertHolder({})
    assert holder.state == "lacks it"
    holder.away = True
    assert holder.state == "cannot be reached"
    holder.fenced = "it lied"
    assert holder.state == "not asked any more, it lied"
