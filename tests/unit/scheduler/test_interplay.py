"""All at once: classes, scores, embeddings, choices, draws that are put off, steps apart, losses, cancellations. What is said stays."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.request import Priority, RequestId
from shoal.scheduler.limits import Limits
from tests.support.toy_stage import Toy, ToyStage, asking, expected, expected_embedding, expected_scores, limits, put_off, request


@dataclass(frozen=True)
class Story:
    limits: Limits
    sizes: list[tuple[int, Priority]]
    happenings: list[tuple[str, int]]


WHAT = ("send", "run", "take", "add", "step", "step", "apart", "lose", "cancel")
DRAFTS = st.sampled_from([0, 1, 6])
stories = st.builds(
    Story,
    st.builds(limits, st.integers(10, 24), slots=st.integers(1, 5), depth=st.integers(1, 3), ageing=st.integers(2, 9), drafts=DRAFTS),
    st.lists(st.tuples(st.integers(1, 24), st.sampled_from(Priority)), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 255)), min_size=60, max_size=200),
)


def run(toy: Toy, late: int) -> None:
    """late: a bit for each draw that is put off."""
    if toy.plans:
        toy.run()
        toy.results.append(put_off(toy.results.pop(), late))


def lose(toy: Toy, everything: bool) -> None:
    """The steps in flight are lost; the stage keeps its cells, or there is another pool."""
    toy.plans.clear()
    toy.results.clear()
    toy.stage = ToyStage(toy.limits.blocks, toy.limits.block_tokens, None if everything else toy.stage)
    toy.scheduler.rewind()
    if everything:
        assert toy.scheduler.restart(toy.limits) == []
    toy.scheduler.check()


@settings(max_examples=150)
@given(stories)
def test_everything_says_what_it_says_alone(story: Story):
    toy = Toy(story.limits)
    asked = [asking(i, range(1, size + 1), priority) for i, (size, priority) in enumerate(story.sizes)]
    coming, cancelled = asked[::2], set[RequestId]()
    for r in asked[1::2]:
        toy.add(r)
    for what, which in story.happenings:
        if what == "send":
            toy.send()
        elif what == "run":
            run(toy, which)
        elif what == "take":
            toy.take()
        elif what == "step":
            toy.send()
            run(toy, which)
            toy.take()
        elif what == "add" and coming:
            toy.add(coming.pop())
        elif what == "apart" and which < 64 and (begun := list(toy.scheduler._requests)):
            toy.scheduler.apart.add(begun[which % len(begun)])
        elif what == "lose" and which < 192:
            lose(toy, which % 4 == 0)
        elif what == "cancel" and which < 16 and (begun := list(toy.scheduler._requests)):
            cancelled.add(begun[which % len(begun)])
            toy.cancel(begun[which % len(begun)])
    for r in coming:
        toy.add(r)
    toy.drain()
    for r in asked:
        if r.id not in cancelled:
            assert (toy.scores[r.id], toy.embeddings[r.id]) == (expected_scores(r), expected_embedding(r))
            for choice in range(r.n):
                assert (toy.said[r.id, choice], toy.ends.get((r.id, choice))) == expected(r, choice)
    assert not toy.scheduler.apart
    assert len(toy.stage) == 0


def test_a_step_is_found_where_one_sequence_gives_way_and_another_can_run():
    """schedule() tries one draw (depth 2, two running); that one preempts itself, and None is the answer."""
    toy = Toy(limits(blocks=8, block_tokens=1, slots=2, step_tokens=2, depth=2))
    toy.add(request("r1", [1], 6, n=2, seed=1))
    for _ in range(40):
        if toy.step() is None:
            break
    assert toy.scheduler.running == 0
