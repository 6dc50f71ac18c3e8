"""What `shoal top` shows of a cluster, at any size, and what its keys do."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from rich.console import Console
from rich.text import Text

from shoal.cli.keys_pressed import named
from shoal.cli.top_page import SECTIONS, Look, page, whole
from shoal.observed.cluster import Advice
from shoal.observed.event import ClusterEvent, EventKind, EventPage
from tests.support.views import HOSTILE, LOADING, NOW, machine, seen, several


def text(lines: list[Text]) -> str:
    return "\n".join(line.plain for line in lines)


def shown(look: Look | None = None, width: int = 80, height: int = 24, trouble: str = "", **changes: object) -> str:
    return text(page(seen(**changes), look or Look(), width, height, trouble))  # pyright: ignore[reportArgumentType]


@given(st.integers(20, 200), st.integers(5, 80), st.integers(0, 150), st.integers(0, 500), st.integers(0, 40), st.sampled_from(SECTIONS))
def test_it_fills_the_screen_and_no_more(width: int, height: int, machines: int, events: int, requests: int, section: str) -> None:
    lines = page(seen(machines, events, requests), Look(section, first=3), width, height)
    assert len(lines) == height
    assert max(line.cell_len for line in lines) <= width
    assert lines[-1].plain.startswith("q quit")


def test_a_screen_of_80_by_24_has_all_of_a_small_cluster() -> None:
    screen = shown()
    for what in ("tiny", "serving", "epoch 3", "23 tokens/s", "predicted 41", "12 for one stream", "2/32 running", "1 waiting", "KV 10%"):
        assert what in screen, what
    for what in (
        "node-0",
        "node-1",
        "██████······",
        "0-14",
        "42%",
        "2.0 GiB of 4.0 GiB",
        "0.3 ms\n",
        "12.0 ms",
        "0.3 ms",
        "50%",
        "node-r1",
        "node-2 joined",
    ):
        assert what in screen, what
    assert "node-1 bounds the pipeline (+14%)" in screen
    assert "of 2" not in screen  # nothing is cut


def test_what_somebody_should_look_at_is_above_all() -> None:
    attention = [Advice("attention", "node-1 was lost")]
    screen = shown(state="waiting", reason="1 of 2 nodes have joined", attention=attention, trouble="http://h does not answer")
    top = screen.splitlines()[:6]
    assert [line for line in top if line.startswith("!")] == ["! node-1 was lost"]
    assert "1 of 2 nodes have joined" in top and "http://h does not answer" in top


def test_many_machines_are_scrolled_and_filtered() -> None:
    look = Look()
    first = shown(look, machines=100, advice=[])
    assert "node-0 " in first and "node-99 " not in first and " of 100" in first
    look.press("page down")
    second = shown(look, machines=100, advice=[])
    assert "node-0 " not in second.split("stages")[0]
    look.press("end")
    assert "node-99 " in shown(look, machines=100, advice=[]).split("stages")[0]
    look.press("up")  # from the last, not from beyond it
    assert "node-99 " not in shown(look, machines=100, advice=[]).split("stages")[0]
    for key in ("home", "/", *"NODE-77", "enter"):
        look.press(key)
    found = shown(look, machines=100, advice=[])
    assert "node-77 " in found and "node-76 " not in found and "filter: NODE-77" in found
    look.press("escape")
    assert "node-76" not in found and "node-0 " in shown(look, machines=100, advice=[])


def test_the_latest_events_are_shown_and_older_ones_by_scrolling() -> None:
    look = Look("events")
    assert "node-499 joined" in shown(look, events=500) and "node-0 joined" not in shown(look, events=500)
    for key in ("down", "down"):
        look.press(key)
    assert "node-499 joined" not in shown(look, events=500) and "node-497 joined" in shown(look, events=500)
    look.press("end")
    assert "node-0 joined" in shown(look, events=500)


@given(
    st.lists(
        st.sampled_from(["up", "down", "page up", "page down", "home", "end", "tab", "back tab", "/", "x", "erase", "enter", "escape"])
    )
)
def test_no_keys_lead_beyond_the_lists(keys: list[str]) -> None:
    look = Look()
    for key in keys:
        assert not look.press(key)
        screen = shown(look, machines=30, events=30, requests=30)
        assert len(screen.splitlines()) == 24
        assert 0 <= look.first <= 40 and look.section in SECTIONS


def test_q_leaves_but_not_while_a_filter_is_typed() -> None:
    look = Look()
    assert look.press("q")
    look.press("/")
    assert not look.press("q")
    assert (look.filter, look.typing) == ("q", True)
    look.press("erase")
    look.press("escape")
    assert (look.filter, look.typing) == ("", False)


def test_keys_are_read_from_what_terminals_send() -> None:
    assert [*named("q\x1b[A\x1bOB\x1b[6~\t\x1b[Z/é\x7f\r\x1b\x00\x1b[200~")] == [
        "q", "up", "down", "page down", "tab", "back tab", "/", "é", "erase", "enter", "escape"
    ]  # fmt: skip


# Several pipelines

THREE = ("tiny/1", "tiny/2", "big/1")


def test_p_goes_from_one_pipeline_to_the_next_and_shift_p_back() -> None:
    look = Look()
    page(several(*THREE), look, 80, 24)
    assert look.pipeline == "tiny/1"
    for key, wanted in (("p", "tiny/2"), ("p", "big/1"), ("p", "tiny/1"), ("P", "big/1"), ("P", "tiny/2")):
        assert not look.press(key)
        assert look.pipeline == wanted
    for key in ("/", "p"):
        look.press(key)
    assert (look.filter, look.pipeline) == ("p", "tiny/2")


def test_with_one_pipeline_p_does_nothing_and_is_not_offered() -> None:
    look = Look()
    before = text(page(several("tiny/1"), look, 80, 24))
    assert not look.press("p") and look.pipeline == "tiny/1"
    assert text(page(several("tiny/1"), look, 80, 24)) == before
    assert "P pipeline" not in before and before.startswith("shoal tiny  serving")


def test_all_pipelines_are_listed_and_the_shown_one_is_named() -> None:
    for at, name in enumerate(THREE):
        lines = text(page(several(*THREE, shown=at), Look(pipeline=name), 100, 24)).splitlines()
        assert lines[0].startswith(f"shoal {name}  ")
        assert next(line for line in lines if "▸" in line).split() == [
            *f"{'▸' * (at == 0)}tiny/1 serving 10/s".split(),
            *f"{'▸' * (at == 1)}tiny/2 loading 20/s".split(),
            *f"{'▸' * (at == 2)}big/1 serving 30/s".split(),
        ]  # fmt: skip
        assert any(line.startswith(f"{name}-0 ") for line in lines) and "p P pipeline" in lines[-1]


@given(st.integers(2, 60), st.integers(0, 59), st.integers(30, 200), st.integers(6, 80))
def test_the_shown_pipeline_is_in_the_list_however_many_there_are(count: int, at: int, width: int, height: int) -> None:
    names = [f"model-{i}/1" for i in range(count)]
    name = names[at % count]
    lines = page(several(*names, shown=at % count), Look(pipeline=name), width, height)
    assert len(lines) == height and max(line.cell_len for line in lines) <= width
    assert any(f"▸{name}" in line.plain for line in lines) or height < 9


def test_a_pipeline_that_goes_is_named_until_another_is_chosen() -> None:
    look = Look(pipeline="big/1")
    page(several(*THREE, shown=2), look, 80, 24)
    for _ in range(2):
        assert "big/1 is gone" in text(page(several(*THREE[:2]), look, 80, 24))
        assert look.pipeline == "tiny/1"
    look.press("p")
    assert "gone" not in text(page(several(*THREE[:2], shown=1), look, 80, 24))


def test_a_pipe_is_given_all_pipelines() -> None:
    views = [several(*THREE, shown=at) for at in range(3)]
    told = text(whole(views[0], [view.cluster for view in views[1:]])).splitlines()
    assert told[0] == "pipelines"
    assert [line.split() for line in told[2:5]] == [
        ["tiny/1", "serving", "1", "2", "10", "tiny/1-0"],
        ["tiny/2", "loading", "2", "3", "20", "tiny/2-0"],
        ["big/1", "serving", "3", "4", "30", "big/1-0"],
    ]
    heads = [line for line in told if line.startswith("shoal ")]
    assert [line.split()[1] for line in heads] == [*THREE]
    for name in THREE:
        assert sum(line.startswith(f"{name}-1 ") for line in told) == 2  # as a machine and as a stage
    assert sum(line.startswith("requests") for line in told) == 1 and sum(line.startswith("events") for line in told) == 1


# Names


def controls(printed: str) -> list[str]:
    return [character for character in printed if not character.isprintable() and character != "\n"]


@pytest.mark.parametrize("width", [80, 300])
def test_no_name_steers_the_terminal(width: int) -> None:
    events = [ClusterEvent(1, NOW, EventKind.LOST, f"{HOSTILE} left: {HOSTILE}", HOSTILE)]
    one = seen(
        name=HOSTILE,
        model=HOSTILE,
        reason=HOSTILE,
        state=HOSTILE,
        attention=[Advice("attention", HOSTILE)],
        machines=2,
    )
    one = structs.replace(one, events=EventPage(events, 1, 1))
    for lines in (page(one, Look(), width, 60, HOSTILE), whole(one)):
        file = io.StringIO()
        Console(file=file, width=width, no_color=True, color_system=None).print(Text("\n").join(lines), soft_wrap=True)
        assert controls(file.getvalue()) == []
        assert "evil·[2J·]0;owned·[bold red]··name" in file.getvalue()
        assert all(line.plain.count("\n") == 0 for line in lines)


def test_machines_say_what_they_do() -> None:
    machines = [
        machine("a", 0, 3, state="suspected", silence=7.4),
        machine("b", 1, 3, slower=2.5),
        machine("c", 2, 3, state="loading", progress=LOADING),
        machine("d", 2, 3, role="experts", first_layer=0, end_layer=0, experts=12),
    ]
    one = seen()
    one = structs.replace(one, cluster=structs.replace(one.cluster, machines=machines))
    lines = text(page(one, Look(), 120, 40))
    for what in ("silent 7 s", "2.5x slower", "packing layer 3 30%", "12 experts"):
        assert what in lines, what


def test_everything_is_printed_once_for_a_pipe() -> None:
    told = text(whole(seen(machines=100, events=200, requests=50)))
    assert all(f"node-{i} " in told for i in range(100))
    assert "node-199 joined" in told and "node-0 joined" in told and "node-r49" in told
    assert "q quit" not in told
