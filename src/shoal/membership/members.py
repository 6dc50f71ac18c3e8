"""The nodes that have joined: who is admitted, heard, suspected, lost, and held off. It knows nothing of routes.

A node is suspected after half of the allowed silence and lost after all of it. One that keeps getting lost is left out for longer and
longer, so a broken node cannot keep the cluster busy for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shoal.errors import CapacityError
from shoal.membership.admission import AdmissionRules
from shoal.membership.events import Joined
from shoal.membership.holdoff import HoldOff
from shoal.membership.instructions import Report
from shoal.membership.member import Departure, Member
from shoal.observed.event import EventKind

_DEPARTED = 256  # nodes that left of which the reason is kept


class Members(Mapping[int, Member]):
    """By number."""

    def __init__(self, version: str, silence: float, admission: AdmissionRules) -> None:
        """version: of this cluster. silence: seconds without a heartbeat after which a node counts as lost."""
        self.version, self.silence = version, silence
        self.departed: dict[int, Departure] = {}
        """The nodes that left last, by number."""
        self.holdoff = HoldOff()
        self._admission = admission
        self._here: dict[int, Member] = {}

    def __getitem__(self, node: int) -> Member:
        return self._here[node]

    def __iter__(self) -> Iterator[int]:
        return iter(self._here)

    def __len__(self) -> int:
        return len(self._here)

    def ghosts(self, joined: Joined) -> dict[int, str]:
        """Members in whose place a node joins, with the reason why they are gone."""
        return {n: why for n, m in self._here.items() if (why := m.replaced_by(joined))}

    def refusal(self, joined: Joined, ghosts: int) -> str:
        """Why a node is refused, or ''. ghosts: members that go when it comes."""
        return self._admission.refusal(joined, self.version, len(self._here) - ghosts)

    def admit(self, joined: Joined, now: float) -> Report:
        self._here[joined.node] = Member(joined, now)
        return Report(EventKind.JOINED, f"{joined.profile.name} joined from {joined.host}", joined.profile.name)

    def heard(self, node: int, now: float) -> list[Report]:
        if (member := self._here.get(node)) is None:
            return []
        suspected, member.heard, member.suspect = member.suspect, now, False
        return [Report(EventKind.HEARD, f"{member.name} is heard again", member.name)] if suspected else []

    def part(self, lost: Mapping[int, str], now: float, graceful: bool) -> dict[int, Report]:
        """Nodes have left or are no longer heard. lost: the reason, by node. Returns what is to be told, by node that was a member."""
        gone: dict[int, Report] = {}
        for node, reason in lost.items():
            if (member := self._here.pop(node, None)) is None:
                continue
            silence = {} if graceful else {"silence": now - member.heard}
            kind = EventKind.LEFT if graceful else EventKind.LOST
            gone[node] = Report(kind, f"{member.name} left: {reason}", member.name, silence)
            self.departed[node] = Departure(reason, graceful)
            if not graceful:
                self.holdoff.lost(member.name, now)
        for node in list(self.departed)[:-_DEPARTED]:
            del self.departed[node]
        return gone

    def listen(self, now: float) -> tuple[dict[int, str], list[Report]]:
        """Those that were silent for too long, with the reason; and what is to be told of those that are suspected from now on."""
        silent: dict[int, str] = {}
        told: list[Report] = []
        for node, member in self._here.items():
            quiet = now - member.heard
            if quiet > self.silence:
                silent[node] = f"nothing was heard from it for {self.silence:g} s"
            elif quiet > self.silence / 2 and not member.suspect:
                member.suspect = True
                words = f"{member.name} has been silent for {quiet:.1f} s; it is given up at {self.silence:g} s"
                told.append(Report(EventKind.SUSPECTED, words, member.name, {"silence": quiet}))
        return silent, told

    def available(self, now: float) -> dict[int, Member]:
        """Those that routes may include."""
        return {n: m for n, m in self._here.items() if not m.draining and self.holdoff.until(m.name) <= now}

    def stop_draining(self, nodes: Sequence[int], why: CapacityError) -> Report:
        """They were to be drained, and stay."""
        names = [self._here[node].name for node in nodes]
        for node in nodes:
            self._here[node].draining = False
        return Report(EventKind.GIVEN_UP, f"{', '.join(names)} cannot be drained: {why}", names[0] if len(names) == 1 else "")
