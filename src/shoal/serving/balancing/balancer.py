"""Which replica takes a request, and which are well enough to take any."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from heapq import heappop, heappush
from typing import Generic

from shoal.config import Balancing
from shoal.serving.balancing.anomalies import FailingReplica, SlowReplica, failing_replicas, slow_replicas
from shoal.serving.balancing.chooser import Chance, Chooser
from shoal.serving.balancing.circuit import Circuit, CircuitBreaker
from shoal.serving.balancing.drawing import Drawing
from shoal.serving.balancing.hash_ring import HashRing
from shoal.serving.balancing.inquiry import Ending, Inquiry
from shoal.serving.balancing.least import Least, connections, expected_latency
from shoal.serving.balancing.limits import BalancerLimits
from shoal.serving.balancing.longest_prefix import LongestPrefix
from shoal.serving.balancing.nearest import Nearest
from shoal.serving.balancing.replica_state import Flight, R, ReplicaState, Traits
from shoal.serving.balancing.reports import HealthChange, Move, NoReplica
from shoal.serving.balancing.retry_budget import RetryBudget
from shoal.serving.balancing.rotation import Rotation

_FIRST_SHARE = 0.1
"""Of what a replica will take, when it begins to."""
_STEPS = 20
"""In which its share rises."""
_CHANGES = 1000
"""That are kept until somebody takes them."""

_USUAL = BalancerLimits()


class Balancer(Generic[R]):
    """Replicas are named by any hashable id, and requests are reported in this order, with a `now` in seconds that never falls:

        replica = balancer.choose(inquiry, now)          None: see why()
        flight = balancer.began(replica, inquiry, now)   at once, before anything else is chosen
        balancer.first_token(flight, now)                if there is one
        balancer.ended(flight, ending, now)              always, once; what comes later for the same flight is ignored

    chance: for the strategies that draw; random.Random is one.
    """

    def __init__(self, strategy: Balancing, chance: Chance, limits: BalancerLimits = _USUAL) -> None:
        self.strategy, self.limits = strategy, limits
        self._chooser: Chooser[R] = self._chooser_of(strategy, chance)
        self._states: dict[R, ReplicaState[R]] = {}
        self._ejected: set[ReplicaState[R]] = set()
        """Not draining, and open or half-open."""
        self._draining = 0
        self._warm: set[ReplicaState[R]] = set()
        """Admitted, with their whole share."""
        self._rising: set[ReplicaState[R]] = set()
        """Closed, with a share that rises."""
        self._used = False
        """Whether there has been a request. Before it all replicas are new, and none of them starts slowly."""
        self._wakes: list[tuple[float, int, ReplicaState[R]]] = []
        """A heap: when to look at which one again."""
        self._wake_count = 0
        self._retries = RetryBudget(limits.retry_share, limits.retries_at_rest)
        self._changes: list[HealthChange[R]] = []
        self._refused: tuple[float, Collection[R], bool] | None = None
        """Of the last choice, if there was none: when it was, what had been tried, and whether it lacked retries."""

    def _chooser_of(self, strategy: Balancing, chance: Chance) -> Chooser[R]:
        match strategy:
            case Balancing.PREFIX:
                return LongestPrefix(self.limits.block_tokens)
            case Balancing.ROUND_ROBIN:
                return Rotation(lambda state: state.share)
            case Balancing.WEIGHTED:
                return Rotation(lambda state: state.share * state.traits.speed)
            case Balancing.LEAST_CONNECTIONS:
                return Least(connections)
            case Balancing.LEAST_LATENCY:
                return Least(expected_latency)
            case Balancing.RANDOM:
                return Drawing(chance, two=False)
            case Balancing.POWER_OF_TWO:
                return Drawing(chance, two=True)
            case Balancing.LOCALITY:
                return Nearest()
            case Balancing.SESSION_HASH:
                return HashRing()

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, replica: R) -> bool:
        return replica in self._states

    # the replicas

    def add(self, replica: R, now: float, traits: Traits | None = None) -> None:
        """It takes requests from now on, few at first if there are others. Raises ValueError if it is there already."""
        if replica in self._states:
            raise ValueError(f"{replica} is there already")
        state = ReplicaState(replica, traits or Traits(), CircuitBreaker(self.limits))
        self._states[replica] = state
        self._start(state, now)
        self._settle(state, now)

    def describe(self, replica: R, traits: Traits) -> None:
        """Its traits have changed."""
        state = self._states[replica]
        state.traits = traits
        self._changed(state)

    def remove(self, replica: R, now: float) -> None:
        """It is gone. Its requests may still be reported."""
        state = self._states.pop(replica)
        self._draining -= state.draining
        self._leave(state, now)
        self._chooser.remove(state)

    def drain(self, replica: R, now: float) -> None:
        """It takes no more requests; those that it has go on, and are not judged any more."""
        state = self._states[replica]
        if not state.draining:
            state.draining = True
            self._draining += 1
            self._leave(state, now)

    def lost_pool(self, replica: R) -> None:
        """Its KV blocks are lost, so that it has computed no prefix any more."""
        self._chooser.forget(self._states[replica])

    def load(self, replica: R, running: int, waiting: int, slots: int) -> None:
        """It reports how many requests it has, whoever sent them, and how many it runs at once."""
        state = self._states[replica]
        state.elsewhere = max(running + waiting - state.in_flight, 0)
        if slots != state.traits.slots:
            state.traits = replace(state.traits, slots=slots)
        self._changed(state)

    # requests

    def choose(self, inquiry: Inquiry, now: float, without: Collection[R] = ()) -> R | None:
        """The replica for a request.

        without: those that were tried. If there are any, this is a retry, of which only some are allowed.
        """
        self._wake(now)
        tried = {self._states[replica] for replica in without if replica in self._states} if without else ()
        state = self._chooser.choose(inquiry, tried)
        spent = bool(without) and state is not None and not self._retries.take(now)
        if state is None or spent:
            self._refused = now, tuple(without), spent
            return None
        self._refused = None
        if not without:
            self._retries.request()
        return state.id

    def why(self) -> NoReplica | None:
        """Why the last choice was None; None: it was not."""
        if self._refused is None:
            return None
        now, without, spent = self._refused
        tried = draining = ejected = probed = busy = 0
        ends: list[float] = []
        for state in self._states.values():
            if state.id in without:
                tried += 1
            elif state.draining:
                draining += 1
            elif state.circuit.state is Circuit.OPEN:
                ejected += 1
                ends.append(state.circuit.until)
            elif not state.circuit.admits:
                probed += 1
            elif state.paused_until > now:
                busy += 1
                ends.append(state.paused_until)
        wait = max(min(ends) - now, 0.0) if ends else None
        return NoReplica(len(self._states), tried, draining, ejected, probed, busy, spent, wait)

    def began(self, replica: R, inquiry: Inquiry, now: float) -> Flight[R]:
        """The request is sent to the replica that was chosen."""
        state = self._states[replica]
        self._used = True
        known = self._chooser.began(state, inquiry)
        tokens = max(inquiry.tokens, len(inquiry.blocks) * self.limits.block_tokens)
        pending = max(tokens - known, 0)
        state.in_flight += 1
        state.pending += pending
        flight = Flight(state, now, pending, state.work, state.circuit.state is Circuit.HALF_OPEN)
        if flight.probe:
            state.circuit.probing += 1
            self._settle(state, now)
        self._changed(state)
        return flight

    def first_token(self, flight: Flight[R], now: float) -> None:
        if flight.over or flight.first is not None:
            return
        flight.first, seconds = now, now - flight.began
        state = flight.state
        state.pending -= flight.pending
        flight.pending = 0
        state.heard(seconds, flight.work, now)
        state.first_tokens.append((now, seconds))
        self._changed(state)

    def ended(self, flight: Flight[R], ending: Ending, now: float, tokens: int = 0, pause: float | None = None) -> None:
        """tokens: of the answer. pause: seconds after which a replica that is busy wants to be asked again, if it says so."""
        if flight.over:
            return
        if ending is Ending.SERVED and flight.first is None:
            self.first_token(flight, now)  # the whole answer came at once
        flight.over, state = True, flight.state
        state.in_flight -= 1
        state.pending -= flight.pending
        if flight.first is not None and tokens > 1:
            state.token_times.append((now, (now - flight.first) / (tokens - 1)))
        if flight.probe:
            state.circuit.probing -= 1
        if self._states.get(state.id) is not state:
            return
        if ending is Ending.BUSY:
            self._pause(state, now, self.limits.pause if pause is None else pause)
        elif ending is not Ending.CANCELLED:
            self._judge(flight, ending is Ending.SERVED, now)
        if flight.probe:
            self._settle(state, now)
        self._changed(state)

    # what operators see

    def anomalies(self, now: float) -> list[SlowReplica[R] | FailingReplica[R]]:
        """Which replicas are out of line with their peers at the moment. Its cost grows with the number of replicas."""
        states = list(self._states.values())
        return [*slow_replicas(states, now), *failing_replicas(states, now)]

    def changes(self) -> list[HealthChange[R]]:
        """What happened to the health of replicas since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def circuit(self, replica: R) -> Circuit:
        return self._states[replica].circuit.state

    def share(self, replica: R) -> float:
        """What it takes, of what it will take when it has been here for a while."""
        return self._states[replica].share

    def in_flight(self, replica: R) -> int:
        return self._states[replica].in_flight

    # health

    def _judge(self, flight: Flight[R], served: bool, now: float) -> None:
        state, circuit = flight.state, flight.state.circuit
        if not served and flight.first is None:
            state.failed(now - flight.began, flight.work, now)
        if state.draining:
            return
        if circuit.state is Circuit.CLOSED:
            circuit.count(served, now)
            if not served and (symptom := circuit.symptom(now)):
                if len(self._ejected) < self._ejectable:
                    self._eject(state, now, symptom)
                else:
                    self._rise_anew(state, now)
        elif circuit.state is Circuit.HALF_OPEN and flight.probe:
            if not served:
                self._eject(state, now, "a request that probed it failed")
            elif circuit.probed():
                self._close(state, now, "requests that probed it were served")

    @property
    def _ejectable(self) -> int:
        """How many replicas may be ejected at once."""
        return int(self.limits.ejected_share * (len(self._states) - self._draining))

    def _eject(self, state: ReplicaState[R], now: float, reason: str) -> None:
        state.circuit.eject(now)
        self._ejected.add(state)
        self._rising.discard(state)
        self._settle(state, now)
        self._look(state, state.circuit.until)
        self._note(state, now, Move.EJECTED, reason, state.circuit.until)

    def _close(self, state: ReplicaState[R], now: float, reason: str) -> None:
        self._ejected.discard(state)
        state.circuit.close(now)
        if state.admitted:
            self._withdraw(state)
        self._start(state, now)
        self._settle(state, now)
        self._note(state, now, Move.BACK, reason)

    def _leave(self, state: ReplicaState[R], now: float) -> None:
        """It takes no requests any more, so that fewer of the others may be ejected."""
        self._ejected.discard(state)
        self._rising.discard(state)
        if state.admitted:
            self._withdraw(state)
        while len(self._ejected) > self._ejectable:
            first = min(self._ejected, key=lambda state: state.circuit.until)
            self._close(first, now, "too few other replicas are left")

    def _pause(self, state: ReplicaState[R], now: float, seconds: float) -> None:
        state.paused_until = max(state.paused_until, now + seconds)
        self._settle(state, now)
        self._look(state, state.paused_until)
        self._note(state, now, Move.PAUSED, "it says that it is busy", state.paused_until)

    # the rising share

    def _start(self, state: ReplicaState[R], now: float) -> None:
        """It is new, or well again, and not admitted yet."""
        state.unknown()
        state.share = 1.0
        self._rise_anew(state, now)

    def _rise_anew(self, state: ReplicaState[R], now: float) -> None:
        """Its share falls to the first one, if there are others that carry the rest."""
        if self.limits.slow_start and self._used and len(self._warm) > (state in self._warm):
            self._warm.discard(state)
            self._rising.add(state)
            state.share, state.began, state.next_step = _FIRST_SHARE, now, now + self.limits.slow_start / _STEPS
            self._look(state, state.next_step)
            self._changed(state)

    def _rise(self, state: ReplicaState[R], now: float) -> None:
        risen = int((now - state.began) / self.limits.slow_start * _STEPS + 1e-6)
        if risen >= _STEPS:
            self._whole(state)
        else:
            state.share = max(_FIRST_SHARE, risen / _STEPS)
            state.next_step = state.began + (risen + 1) * self.limits.slow_start / _STEPS
            self._look(state, state.next_step)
            self._changed(state)

    def _whole(self, state: ReplicaState[R]) -> None:
        self._rising.discard(state)
        state.share = 1.0
        if state.admitted:
            self._warm.add(state)
            self._changed(state)

    # who may be chosen

    def _settle(self, state: ReplicaState[R], now: float) -> None:
        able = not state.draining and state.circuit.admits and state.paused_until <= now
        if able and not state.admitted:
            if state.circuit.state is Circuit.HALF_OPEN:
                state.share = _FIRST_SHARE
            state.admitted = True
            if state.share == 1.0:
                self._warm.add(state)
            self._chooser.admit(state)
        elif state.admitted and not able:
            self._withdraw(state)

    def _withdraw(self, state: ReplicaState[R]) -> None:
        state.admitted = False
        self._chooser.withdraw(state)
        self._warm.discard(state)
        if not self._warm:  # nobody is left to carry the rest
            for rising in list(self._rising):
                self._whole(rising)

    def _changed(self, state: ReplicaState[R]) -> None:
        if state.admitted:
            self._chooser.changed(state)

    # time

    def _look(self, state: ReplicaState[R], at: float) -> None:
        self._wake_count += 1
        heappush(self._wakes, (at, self._wake_count, state))

    def _wake(self, now: float) -> None:
        while self._wakes and self._wakes[0][0] <= now:
            state = heappop(self._wakes)[2]
            if self._states.get(state.id) is not state or state.draining:
                continue
            if state.circuit.wake(now):
                state.unknown()
                self._note(state, now, Move.PROBED, "its time is over")
            if state in self._rising and state.next_step <= now:
                self._rise(state, now)
            self._settle(state, now)

    def _note(self, state: ReplicaState[R], now: float, move: Move, reason: str, until: float = 0.0) -> None:
        if len(self._changes) < _CHANGES:
            self._changes.append(HealthChange(state.id, now, move, reason, until))
