"""The simulated replicas: no request is lost, a cache holds what it should, and the strategies are worth what they are said to be."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replicas import BLOCK, Cache, Conversation, Machine, Traffic, begins, simulate
from shoal.config import Balancing
from shoal.serving.balancing.prefix_index import PrefixIndex

EIGHT = [Machine()] * 8


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=60), st.integers(8, 40))
def test_a_cache_holds_what_an_index_of_blocks_does(turns: list[tuple[int, int]], bound: int):
    cache, index = Cache(bound), PrefixIndex()
    system, document = range(1, 3), range(10, 13)
    shared = [((1, 2),), ((1, 2), (10, 5))]
    names = [list(system), [*system, *document]]
    conversations = [Conversation(str(n), 1, 0, list(names[n % 2]), shared[n % 2]) for n in range(5)]
    fresh = 100
    for number, more in turns:
        conversation = conversations[number]
        conversation.names.extend(range(fresh, fresh + more + 1))
        fresh += more + 1
        if len(conversation.names) <= bound:
            assert cache.use(conversation, len(conversation.names)) == index.record(0, conversation.names, bound)


def test_every_request_ends_and_is_counted_once():
    ran = simulate(Balancing.PREFIX, EIGHT, Traffic(rate=1.0), 500, "a")
    assert len(ran.first_tokens) == sum(queue.requests for queue in ran.queues) == 500
    assert all((queue.running, queue.held, len(queue.waiting)) == (0, 0, 0) for queue in ran.queues)
    assert sum(queue.computed for queue in ran.queues) == ran.prompt_tokens - ran.cached_tokens
    assert ran.first_tokens == sorted(ran.first_tokens) and ran.first_tokens[0] > 0


def test_one_seed_is_one_run():
    one, again = (simulate(Balancing.RANDOM, EIGHT, Traffic(rate=1.0, bursty=True), 300, "a") for _ in range(2))
    assert one.first_tokens == again.first_tokens


def test_conversations_come_at_their_rate_in_bursts_and_without():
    for bursty in (False, True):
        times = begins(Random(3), Traffic(rate=2.0, bursty=bursty))
        last = [next(times) for _ in range(20_000)][-1]
        assert 0.9 < last / 10_000 < 1.1


def test_bursts_are_bursts():
    def spread(bursty: bool) -> float:
        """Variance of the conversations per ten seconds, by their mean: 1 of a Poisson process."""
        times, counts = begins(Random(3), Traffic(rate=2.0, bursty=bursty)), [0] * 500
        while (at := next(times)) < 5000:
            counts[int(at / 10)] += 1
        mean = sum(counts) / 500
        return sum((count - mean) ** 2 for count in counts) / 500 / mean

    assert 0.8 < spread(False) < 1.2
    assert spread(True) > 3


def test_prefix_has_nearly_the_hits_of_one_replica_and_round_robin_half():
    traffic = Traffic(rate=1.12)
    one = simulate(Balancing.PREFIX, [Machine().times(8)], traffic, 3000, "hits").hit_rate
    assert simulate(Balancing.PREFIX, EIGHT, traffic, 3000, "hits").hit_rate >= 0.9 * one
    assert 0.35 * one < simulate(Balancing.ROUND_ROBIN, EIGHT, traffic, 3000, "hits").hit_rate < 0.65 * one


def test_least_latency_avoids_a_slow_replica_and_it_is_noticed():
    machines, traffic = [Machine().slower(4), *EIGHT[1:]], Traffic(rate=0.4)
    latency = simulate(Balancing.LEAST_LATENCY, machines, traffic, 3000, "slow")
    rotation = simulate(Balancing.ROUND_ROBIN, machines, traffic, 3000, "slow")
    assert latency.first(0.99) <= rotation.first(0.99)
    assert latency.queues[0].requests < rotation.queues[0].requests / 2
    assert {anomaly.replica for anomaly in rotation.anomalies} == {0}


def test_a_machine_that_is_slower_takes_longer_by_as_much():
    slow, usual = Machine().slower(2), Machine()
    assert (slow.prefill * 2, slow.decode / 2, slow.slots) == (usual.prefill, usual.decode, usual.slots)
    assert usual.times(8).blocks * BLOCK == 8 * usual.blocks * BLOCK
