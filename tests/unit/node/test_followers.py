from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import pytest
from structlog.testing import capture_logs

from shoal import __version__
from shoal.control import messages as control
from shoal.control.server import NodeConnection
from shoal.errors import NotReady
from shoal.node import followers
from shoal.node.followers import Followers, Leadership, Version
from shoal.testing.clock import SimulatedLoop
from shoal.testing.standby_scenario import MemoryCopies, MemoryLog

SERVES = control.Serves(settings="{}", models="[]")


class Leads:
    def __init__(self) -> None:
        self.now = True

    def __call__(self) -> bool:
        return self.now


class Standby:
    """A standby's end, without a network: it applies and acknowledges what it is asked to."""

    def __init__(self, made: Followers, address: str = "b:1") -> None:
        self.made, self.conversation, self.copies = made, NodeConnection("b"), MemoryCopies()
        self.serves: list[control.Serves] = []
        self.pieces: list[control.Copy] = []
        self.ended = False
        self._number = 0
        made.heard(self.conversation, control.Follow(version=__version__, address=address))

    async def take(self, acknowledge: bool = True) -> None:
        """All that was said so far."""
        await asyncio.sleep(0.01)
        outbox = self.conversation._outbox
        while not outbox.empty():
            match outbox.get_nowait():
                case None:
                    self.ended = True
                case control.Copy() | control.Append() as message:
                    self.copies.apply(message)
                    self.pieces += [message] if isinstance(message, control.Copy) else []
                    self._number = message.number
                case control.Serves() as message:
                    self.serves.append(message)
                    self._number = message.number
                case _:
                    pass
        if acknowledge:
            self.made.heard(self.conversation, control.Copied(number=self._number))


def run(work: Callable[[Followers, Leads], Awaitable[None]], before: bool = True, patience: float = 60.0) -> None:
    async def go() -> None:
        leads = Leads()
        made = Followers(Leadership(1, leads, 2.0, "a:1", before), lambda: SERVES, None, patience)
        try:
            await work(made, leads)
        finally:
            await made.close()

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(go())


def logged(made: Followers) -> MemoryLog:
    log = MemoryLog([], lambda data: made.put("m", data))
    made.keep("m", log)
    return log


def test_a_copy_is_the_log_whenever_the_standby_came() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        log = logged(made)
        log._add(b"before it came, ")
        standby = Standby(made)
        log._add(b"in the same moment, ")
        await standby.take()
        log._add(b"and after it")
        await standby.take()
        assert bytes(standby.copies.files["requests/m"]) == bytes(log.data)
        assert standby.serves[-1].whole and made.copied
        assert made.addresses == ["b:1"]

    run(work)


def test_a_log_of_a_model_that_is_loaded_later_is_copied_and_one_that_goes_is_not() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        standby = Standby(made)
        await standby.take()
        log = logged(made)
        log._add(b"1")
        await standby.take()
        made.drop("m")
        log._add(b"2")
        await standby.take()
        assert bytes(standby.copies.files["requests/m"]) == bytes(log.data)[:-1]

    run(work)


def test_a_log_that_goes_before_its_copy_keeps_no_standby_waiting() -> None:
    class Late:
        def snapshot(self, take: Callable[[bytes], None]) -> None:
            self.take = take

    async def work(made: Followers, leads: Leads) -> None:
        made.keep("late", late := Late())
        standby = Standby(made)
        await standby.take()
        made.drop("late")
        made.put("late", b"nobody has it")
        late.take(b"")
        await standby.take()
        assert made.copied and not standby.copies.files
        out = list[int]()
        made.hand_out(lambda: out.append(1))
        assert out == [1]

    run(work)


def test_large_logs_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "_PIECE", 7)

    async def work(made: Followers, leads: Leads) -> None:
        log = logged(made)
        log._add(bytes(range(100)))
        standby = Standby(made)
        await standby.take()
        assert bytes(standby.copies.files["requests/m"]) == bytes(log.data)
        *pieces, end = standby.pieces
        assert len(pieces) == (len(log.data) - 1) // 7 and {len(piece.data) for piece in pieces} == {7}
        assert [piece.first for piece in standby.pieces] == [True, *[False] * len(pieces)]
        assert end.last and not any(piece.last for piece in pieces)

    run(work)


def test_tokens_wait_for_a_standby_that_has_them_and_keep_their_order() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        log, out = logged(made), list[int]()
        made.hand_out(lambda: out.append(0))
        assert out == [0]  # nobody stands by
        standby = Standby(made)
        await standby.take()
        for i in (1, 2):
            log._add(b"x")
            made.hand_out(lambda i=i: out.append(i))
        answered = asyncio.ensure_future(made.confirmed())
        await standby.take(acknowledge=False)
        assert out == [0] and not answered.done()
        await standby.take()
        assert out == [0, 1, 2]
        await answered

    run(work)


def test_tokens_wait_for_every_standby_that_may_lead_next() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        log, out = logged(made), list[int]()
        standbys = [Standby(made, f"{name}:1") for name in "bcd"]
        for standby in standbys[:2]:
            await standby.take()  # the third has no copy yet, and does not count
        log._add(b"x")
        made.hand_out(lambda: out.append(1))
        await standbys[1].take()
        assert not out
        await standbys[0].take()
        assert out == [1]
        log._add(b"y")
        made.hand_out(lambda: out.append(2))
        await standbys[0].take()
        assert out == [1]
        made.hung_up(standbys[1].conversation)
        assert out == [1, 2]

    run(work)


def test_what_a_standby_says_counts_only_when_it_has_all_that_there_was() -> None:
    """Otherwise it would confirm a record that is in a log which it does not have yet."""

    class Late:
        def snapshot(self, take: Callable[[bytes], None]) -> None:
            self.take = take

    async def work(made: Followers, leads: Leads) -> None:
        log, late, out = logged(made), Late(), list[int]()
        made.keep("late", late)
        standby = Standby(made)
        await standby.take()
        log._add(b"x")
        await standby.take()
        assert not made.copied
        made.hand_out(lambda: out.append(1))
        assert out == [1]  # as if nobody stood by
        late.take(b"its records")
        await standby.take()
        assert made.copied

    run(work)


def test_tokens_come_at_once_where_they_need_not_wait() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        log, out = logged(made), list[int]()
        await Standby(made).take()
        log._add(b"x")
        made.hand_out(lambda: out.append(1))
        assert out == [1]

    run(work, before=False)


def test_a_standby_that_does_not_answer_is_lost_and_requests_go_on_without() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        log, out = logged(made), list[int]()
        standby = Standby(made)
        await standby.take()
        with capture_logs() as logs:
            log._add(b"x")
            made.hand_out(lambda: out.append(1))
            await asyncio.sleep(0.2)
        assert out == [1] and not made.copied and made.addresses == []
        assert [entry["log_level"] for entry in logs] == ["warning", "error"]
        await standby.take(acknowledge=False)
        assert standby.ended

    run(work, patience=0.05)


def test_a_standby_that_answers_is_kept_though_something_always_waits_for_it() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        log, out = logged(made), list[int]()
        standby = Standby(made)
        await standby.take()
        for i in range(40):
            log._add(b"x")
            made.hand_out(lambda i=i: out.append(i))
            before = standby._number
            await standby.take(acknowledge=False)
            made.heard(standby.conversation, control.Copied(number=before))  # and thus not the last one
            await asyncio.sleep(0.02)
        assert made.copied and out == [*range(39)]

    run(work, patience=0.1)


def test_a_first_copy_takes_as_long_as_it_takes() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        log, out = logged(made), list[int]()
        standby = Standby(made)
        for i in range(10):
            await standby.take(acknowledge=False)
            log._add(b"x")
            made.hand_out(lambda i=i: out.append(i))
            await asyncio.sleep(0.1)
        assert out == [*range(10)]  # as if nobody stood by
        assert made.addresses == ["b:1"] and not made.copied
        await standby.take()
        assert made.copied

    run(work, patience=0.1)


def test_a_standby_that_falls_behind_is_lost_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "_MOST_UNSAID", 1000)

    async def work(made: Followers, leads: Leads) -> None:
        log = logged(made)
        await (standby := Standby(made)).take()
        for _ in range(200):
            log._add(bytes(100))
        assert made.addresses == []
        assert standby.conversation._outbox.qsize() < 20

    run(work, before=False)


def test_a_head_that_does_not_lead_hands_out_nothing() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        log, out = logged(made), list[int]()
        standby = Standby(made)
        await standby.take()
        log._add(b"x")
        made.hand_out(lambda: out.append(1))
        leads.now = False
        await standby.take()
        made.hand_out(lambda: out.append(2))
        assert out == []
        with pytest.raises(NotReady, match="does not lead"):
            await made.confirmed()

    run(work)


def test_a_standby_that_comes_again_takes_its_own_place() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        first, second = Standby(made), Standby(made)
        await first.take(acknowledge=False)
        await second.take()
        assert first.ended and made.addresses == ["b:1"]
        made.hung_up(second.conversation)
        assert made.addresses == []

    run(work)


def test_another_version_is_refused() -> None:
    async def work(made: Followers, leads: Leads) -> None:
        conversation = NodeConnection("b")
        made.heard(conversation, control.Follow(version="0.0.1", address="b:1"))
        said = conversation._outbox.get_nowait()
        assert isinstance(said, control.Refuse) and "0.0.1" in said.reason and not said.follows

    run(work)


def test_changed_files_are_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "_LOOK", 0.01)

    class Files:
        version, data = (1, 1), b"first"

        def changed(self, known: Mapping[str, Version]) -> dict[str, tuple[Version, bytes]]:
            return {} if known.get("keys.sqlite") == self.version else {"keys.sqlite": (self.version, self.data)}

    async def go() -> None:
        files = Files()
        made = Followers(Leadership(1, Leads(), 2.0, "a:1", True), lambda: SERVES, files)
        standby = Standby(made)
        while "keys.sqlite" not in standby.copies.files:
            await standby.take()
        assert standby.copies.files["keys.sqlite"] == b"first"
        files.version, files.data = (1, 2), b"second"
        while standby.copies.files["keys.sqlite"] != b"second":
            await standby.take()
        await made.close()

    asyncio.run(asyncio.wait_for(go(), 60))


@pytest.mark.parametrize("how", ["it loses the lease", "it is closed"])
def test_a_request_that_waits_for_a_standby_is_refused_when_its_head_is_deposed(how: str) -> None:
    async def work(made: Followers, leads: Leads) -> None:
        log = logged(made)
        await (standby := Standby(made)).take()
        log._add(b"x")
        answered = asyncio.ensure_future(made.confirmed())
        await standby.take(acknowledge=False)
        assert not answered.done()
        if how == "it loses the lease":
            leads.now = False
            await standby.take()
        else:
            await made.close()
        with pytest.raises(NotReady, match="does not lead"):
            await answered

    run(work)
