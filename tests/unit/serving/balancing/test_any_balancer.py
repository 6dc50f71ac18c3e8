"""Whatever happens to replicas and requests, in any order and with every strategy: only those get requests that may."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.config import Balancing
from shoal.serving.balancing.balancer import Balancer
from shoal.serving.balancing.circuit import Circuit
from shoal.serving.balancing.inquiry import Ending, Inquiry
from shoal.serving.balancing.limits import BalancerLimits
from shoal.serving.balancing.replica_state import Flight, Traits
from shoal.serving.balancing.reports import Move

picks = st.integers(0, 1000)
names = st.integers(0, 7)
inquiries = st.builds(
    lambda depth, branch, session: Inquiry(depth * 32 + 1, tuple((branch if at > 1 else 0, at) for at in range(depth)), session),
    st.integers(0, 6),
    st.integers(0, 2),
    st.sampled_from(["", "a", "b", "c"]),
)
traits = st.builds(
    lambda speed, distance, slots, blocks: Traits(speed=speed, distance=distance, slots=slots, blocks=blocks),
    st.floats(0.1, 100),
    st.floats(0, 10),
    st.integers(1, 4),
    st.integers(0, 9),
)


class AnyBalancer(RuleBasedStateMachine):
    @initialize(
        strategy=st.sampled_from(Balancing), share=st.sampled_from([0.0, 0.3, 0.5, 1.0]), slow=st.sampled_from([0.0, 20.0]), seed=picks
    )
    def begin(self, strategy: Balancing, share: float, slow: float, seed: int) -> None:
        self.limits = BalancerLimits(failures=2, enough=4, ejected_share=share, slow_start=slow, retries_at_rest=1e6, longest_ejection=40.0)
        self.balancer = Balancer[int](strategy, Random(seed), self.limits)
        self.now = 0.0
        self.there: set[int] = set()
        self.draining: set[int] = set()
        self.paused: dict[int, float] = {}
        self.flights: list[tuple[int, Flight[int]]] = []
        self.probes: dict[int, list[Flight[int]]] = {}

    def candidates(self, without: set[int]) -> set[int]:
        return {name for name in self.there - self.draining - without if self.may_take(name)}

    def may_take(self, name: int) -> bool:
        circuit = self.balancer.circuit(name)
        probing = sum(not flight.over for flight in self.probes.get(name, []))
        return self.paused.get(name, 0.0) <= self.now and (
            circuit is Circuit.CLOSED or (circuit is Circuit.HALF_OPEN and probing < self.limits.probes)
        )

    @rule(name=names, own=traits)
    def add(self, name: int, own: Traits) -> None:
        if name not in self.there:
            self.balancer.add(name, self.now, own)
            self.there.add(name)
            self.probes[name] = []

    @rule(name=names)
    def remove(self, name: int) -> None:
        if name in self.there:
            self.balancer.remove(name, self.now)
            self.there.discard(name)
            self.draining.discard(name)
            self.paused.pop(name, None)

    @rule(name=names)
    def drain(self, name: int) -> None:
        if name in self.there:
            self.balancer.drain(name, self.now)
            self.draining.add(name)

    @rule(name=names, own=traits)
    def describe(self, name: int, own: Traits) -> None:
        if name in self.there:
            self.balancer.describe(name, own)

    @rule(name=names, running=st.integers(0, 5), waiting=st.integers(0, 5), slots=st.integers(1, 5))
    def load(self, name: int, running: int, waiting: int, slots: int) -> None:
        if name in self.there:
            self.balancer.load(name, running, waiting, slots)

    @rule(name=names)
    def lose_pool(self, name: int) -> None:
        if name in self.there:
            self.balancer.lost_pool(name)

    @rule(inquiry=inquiries, without=st.sets(names, max_size=5))
    def ask(self, inquiry: Inquiry, without: set[int]) -> None:
        chosen = self.balancer.choose(inquiry, self.now, without)
        candidates = self.candidates(without)  # after it: a choice is when time takes effect
        if chosen is None:
            assert not candidates
            why = self.balancer.why()
            assert why is not None and not why.retries_spent
            assert why.tried + why.draining + why.ejected + why.probed + why.busy == why.known == len(self.there)
        else:
            assert chosen in candidates
            assert self.balancer.why() is None
            probe = self.balancer.circuit(chosen) is Circuit.HALF_OPEN
            flight = self.balancer.began(chosen, inquiry, self.now)
            self.flights.append((chosen, flight))
            if probe:
                self.probes[chosen].append(flight)

    @precondition(lambda self: self.flights)
    @rule(pick=picks)
    def first_token(self, pick: int) -> None:
        self.balancer.first_token(self.flights[pick % len(self.flights)][1], self.now)

    @precondition(lambda self: self.flights)
    @rule(pick=picks, ending=st.sampled_from([*Ending, Ending.FAILED, Ending.FAILED]), tokens=st.integers(0, 9))
    def end(self, pick: int, ending: Ending, tokens: int) -> None:
        name, flight = self.flights.pop(pick % len(self.flights))
        self.balancer.ended(flight, ending, self.now, tokens)
        self.balancer.ended(flight, Ending.FAILED, self.now)  # counts once
        if ending is Ending.BUSY and self.is_current(name, flight):
            self.paused[name] = self.now + self.limits.pause

    def is_current(self, name: int, flight: Flight[int]) -> bool:
        """Not of an earlier replica of that name."""
        return name in self.there and self.balancer._states[name] is flight.state

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 5.0, 10.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def requests_in_flight_are_counted(self) -> None:
        for name in self.there:
            assert self.balancer.in_flight(name) == sum(self.is_current(name, flight) for other, flight in self.flights if other == name)

    @invariant()
    def no_more_are_ejected_than_may_be(self) -> None:
        out = [name for name in self.there - self.draining if self.balancer.circuit(name) is not Circuit.CLOSED]
        assert len(out) <= self.limits.ejected_share * len(self.there - self.draining)

    @invariant()
    def shares_are_shares(self) -> None:
        assert all(0 < self.balancer.share(name) <= 1 for name in self.there)

    @invariant()
    def changes_name_those_that_were_there(self) -> None:
        for change in self.balancer.changes():
            assert change.reason and (change.until > change.at) == (change.move in (Move.EJECTED, Move.PAUSED))

    def teardown(self) -> None:
        if not hasattr(self, "flights"):
            return
        for _, flight in self.flights:
            self.balancer.ended(flight, Ending.CANCELLED, self.now)
            assert flight.state.in_flight >= 0
        for name in self.there:
            state = self.balancer._states[name]
            assert (state.in_flight, state.pending, state.circuit.probing) == (0, 0, 0)


TestAnyBalancer = AnyBalancer.TestCase
TestAnyBalancer.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
