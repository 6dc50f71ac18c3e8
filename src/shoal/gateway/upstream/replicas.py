"""The replicas of one model at one endpoint: this server, if it has the model, and its upstreams."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from random import Random

from shoal.config import Balancing
from shoal.errors import NotReady, ShoalError, UpstreamBusy
from shoal.gateway.upstream.upstream import Upstream
from shoal.serving.balancing.balancer import Balancer
from shoal.serving.balancing.inquiry import Ending, Inquiry
from shoal.serving.balancing.replica_state import Flight
from shoal.serving.balancing.reports import Move
from shoal.serving.balancing.text_pieces import READING

HERE = ""
"""This server, among the URLs of the others."""


class ReplicaSet:
    def __init__(
        self,
        model: str,
        upstreams: Mapping[str, Upstream],
        strategy: Balancing,
        chance: Random,
        now: Callable[[], float],
        changed: Callable[[Upstream], None],
    ) -> None:
        """upstreams: all, by URL. now: seconds, by a clock that never falls. changed: is told of one that gets requests again, or none."""
        self._model, self._upstreams, self._now, self._changed = model, upstreams, now, changed
        self._balancer = Balancer[str](strategy, chance)
        self.reads_pieces = strategy in READING
        """Whether it looks at more of an inquiry than the length of the prompt."""
        self._members: frozenset[str] = frozenset()

    def settle(self, members: frozenset[str]) -> None:
        """These take requests now, and no others."""
        for replica in self._members - members:
            self._balancer.remove(replica, self._now())
            self._admit(replica)
        for replica in sorted(members - self._members):
            self._balancer.add(replica, self._now())
        self._members = members
        self._tell()

    def choose(self, inquiry: Inquiry, tried: Collection[str]) -> str | None:
        """None: `refusal` says why."""
        chosen = self._balancer.choose(inquiry, self._now(), tried)
        self._tell()
        return chosen

    @property
    def refusal(self) -> ShoalError:
        """Why no replica was chosen."""
        why = self._balancer.why()
        if why is not None and why.busy and why.wait is not None:
            return UpstreamBusy(self._model, why.wait)
        return NotReady(f"no server that has the model '{self._model}' takes requests now: {why}")

    def began(self, replica: str, inquiry: Inquiry) -> Flight[str]:
        return self._balancer.began(replica, inquiry, self._now())

    def answered(self, flight: Flight[str]) -> None:
        """The first byte of the answer has come."""
        self._balancer.first_token(flight, self._now())

    def ended(self, flight: Flight[str], ending: Ending, tokens: int = 0, pause: float | None = None) -> None:
        """tokens, pause: see Balancer.ended."""
        self._balancer.ended(flight, ending, self._now(), tokens, pause)
        self._tell()

    def _tell(self) -> None:
        for change in self._balancer.changes():
            if change.move is Move.EJECTED and change.replica in self._upstreams:
                upstream = self._upstreams[change.replica]
                upstream.ejected[self._model] = change.reason
                self._changed(upstream)
            elif change.move is Move.BACK:
                self._admit(change.replica)

    def _admit(self, replica: str) -> None:
        upstream = self._upstreams.get(replica)
        if upstream is not None and upstream.ejected.pop(self._model, None) is not None:
            self._changed(upstream)
