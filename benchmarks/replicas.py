"""Replicas of a model as queues, and the traffic that they get, simulated: everything from one seed."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, cycle
from random import Random

from benchmarks.traffic import OUTPUT_MEAN, OUTPUT_SIGMA, lognormal
from shoal.config import Balancing
from shoal.serving.balancing.anomalies import FailingReplica, SlowReplica
from shoal.serving.balancing.balancer import Balancer
from shoal.serving.balancing.inquiry import Ending, Inquiry
from shoal.serving.balancing.replica_state import Flight, Traits

BLOCK = 32
CONTEXT = 16384
SYSTEMS, SYSTEM_TOKENS = 4, 512
"""Shared system prompts; a conversation begins with one of them."""
HOT_TOKENS = 4096
"""Of the document with which some conversations go on, always the same."""
FIRST_MEAN, NEXT_MEAN, TEXT_SIGMA = 400, 120, 1.0
"""Tokens of a conversation's first message, and of the later ones."""
THINKING = 20.0
"""Seconds between an answer and the next message, on average; exponential."""
BURST, BETWEEN, CROWD = 10.0, 50.0, 4.0
"""Seconds that bursts and the times between them take, on average, and how many times as many conversations begin in a burst."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    rate: float
    """Conversations that begin per second."""
    turns: float = 5.0
    """Of a conversation, on average; geometric."""
    bursty: bool = False
    hot: float = 0.1
    """Share of the conversations that begin with the hot document."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    slots: int = 8
    prefill: float = 2000.0
    """Tokens per second. One prompt after the other."""
    decode: float = 0.03
    """Seconds per token, of every running request."""
    blocks: int = 2048

    def times(self, factor: float) -> Machine:
        """One that does the work of so many."""
        return Machine(slots=int(self.slots * factor), prefill=self.prefill * factor, decode=self.decode, blocks=int(self.blocks * factor))

    def slower(self, factor: float) -> Machine:
        return Machine(slots=self.slots, prefill=self.prefill / factor, decode=self.decode * factor, blocks=self.blocks)


def lengths(chance: Random, mean: float, sigma: float, most: int) -> Iterator[int]:
    """Lognormal, drawn ahead: a simulation needs millions."""
    return cycle([lognormal(chance, mean, sigma, most) for _ in range(10_007)])


class Fresh:
    """Names of blocks that no other block has."""

    def __init__(self) -> None:
        self._next = 1

    def take(self, names: int) -> range:
        self._next += names
        return range(self._next - names, self._next)


@dataclass(eq=False, slots=True)
class Conversation:
    session: str
    turns: int
    """That are still to come."""
    tokens: int
    names: list[int]
    """Of its full blocks."""
    shared: tuple[tuple[int, int], ...]
    """The beginnings that it shares with others: the name of the first block that is not of the one before, and the end, in blocks."""

    def say(self, tokens: int, fresh: Fresh) -> None:
        self.tokens += tokens
        self.names.extend(fresh.take(self.tokens // BLOCK - len(self.names)))


@dataclass(eq=False, slots=True)
class Asked:
    conversation: Conversation
    inquiry: Inquiry
    answer: int
    at: float
    replica: int = -1
    flight: Flight[int] | None = None


class Cache:
    """A replica's prefix cache, LRU by blocks, as far as this traffic needs it: a conversation goes on from a beginning that others
    share, and from nothing else. What was used least recently goes, its last block first.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._held: OrderedDict[Conversation | int, int] = OrderedDict()
        """Blocks of each conversation's own, and of each beginning, which is named by its first own block."""
        self._sum = 0

    def use(self, conversation: Conversation, blocks: int) -> int:
        """It is computed up to so many blocks. Returns how many of them were there."""
        found = reached = 0
        for first, shared in conversation.shared:
            held = self._keep(first, shared - reached)
            found += held if found == reached else 0
            reached = shared
        held = self._keep(conversation, blocks - reached)
        found += held if found == reached else 0
        for first, _ in reversed(conversation.shared):
            self._held.move_to_end(first)
        if self._sum > self._blocks:
            self._shrink()
        return found

    def grow(self, conversation: Conversation, blocks: int) -> None:
        """It goes on from where it was used last, which is in use until now."""
        self._keep(conversation, blocks - conversation.shared[-1][1])
        if self._sum > self._blocks:
            self._shrink()

    def _shrink(self) -> None:
        while self._sum > self._blocks:
            oldest, held = next(iter(self._held.items()))
            gone = min(held, self._sum - self._blocks)
            self._sum -= gone
            if gone == held:
                del self._held[oldest]
            else:
                self._held[oldest] = held - gone

    def _keep(self, what: Conversation | int, blocks: int) -> int:
        held = self._held.get(what, 0)
        if blocks > held or not held:
            self._held[what] = blocks
            self._sum += blocks - held
        self._held.move_to_end(what)
        return held if held < blocks else blocks


@dataclass(eq=False, slots=True)
class Queue:
    machine: Machine
    cache: Cache
    running: int = 0
    waiting: deque[Asked] = field(default_factory=lambda: deque[Asked]())
    free: float = 0.0
    """When its prompts so far are computed."""
    requests: int = 0
    computed: int = 0
    """Tokens of prompts."""
    held: int = 0
    """Requests that it has now, and most that it had."""
    most: int = 0


@dataclass
class Ran:
    prompt_tokens: int
    cached_tokens: int
    first_tokens: list[float]
    """Seconds, in order."""
    queues: list[Queue]
    anomalies: list[SlowReplica[int] | FailingReplica[int]]
    """When half of the requests had arrived."""

    @property
    def hit_rate(self) -> float:
        """Of all prompts' tokens, those that were not computed."""
        return self.cached_tokens / self.prompt_tokens

    def first(self, share: float) -> float:
        """A quantile of the seconds to the first token."""
        return self.first_tokens[int(share * (len(self.first_tokens) - 1))]

    @property
    def hottest(self) -> float:
        """Requests of the replica that got the most, as a multiple of the mean."""
        requests = [queue.requests for queue in self.queues]
        return max(requests) * len(requests) / sum(requests)


def begins(chance: Random, traffic: Traffic) -> Iterator[float]:
    """When conversations begin."""
    now, crowded, until = 0.0, False, chance.expovariate(1 / BETWEEN)
    calm = (BURST + BETWEEN) / (BURST * CROWD + BETWEEN)
    while True:
        rate = traffic.rate * (calm * (CROWD if crowded else 1.0) if traffic.bursty else 1.0)
        wait = chance.expovariate(rate)
        if traffic.bursty and now + wait > until:
            now, crowded = until, not crowded
            until += chance.expovariate(1 / (BURST if crowded else BETWEEN))
        else:
            now += wait
            yield now


def simulate(strategy: Balancing, machines: list[Machine], traffic: Traffic, requests: int, seed: str) -> Ran:
    """Runs until so many requests have arrived and ended."""
    chance, fresh = Random(seed), Fresh()
    balancer = Balancer[int](strategy, Random(f"{seed} draws"))
    queues = [Queue(machine, Cache(machine.blocks)) for machine in machines]
    for number, machine in enumerate(machines):
        balancer.add(number, 0.0, Traits(speed=machine.prefill, slots=machine.slots, blocks=machine.blocks))
    systems = [fresh.take(SYSTEM_TOKENS // BLOCK) for _ in range(SYSTEMS)]
    document = fresh.take(HOT_TOKENS // BLOCK)
    first_message = lengths(chance, FIRST_MEAN, TEXT_SIGMA, 4096)
    next_message = lengths(chance, NEXT_MEAN, TEXT_SIGMA, 4096)
    answers = lengths(chance, OUTPUT_MEAN, OUTPUT_SIGMA, 2048)
    events: list[tuple[float, int, str, Conversation | Asked | None]] = []
    order = count()
    beginnings = begins(chance, traffic)
    ran = Ran(0, 0, [], queues, [])
    arrived = 0

    def at(time: float, what: str, subject: Conversation | Asked | None = None) -> None:
        heappush(events, (time, next(order), what, subject))

    def begin() -> Conversation:
        is_hot = chance.random() < traffic.hot
        system = systems[0 if is_hot else chance.randrange(SYSTEMS)]
        shared = ((system[0], len(system)), *([(document[0], len(system) + len(document))] if is_hot else []))
        names = [*system, *document] if is_hot else list(system)
        conversation = Conversation(f"s{next(order)}", 1, len(names) * BLOCK, names, shared)
        while chance.random() > 1 / traffic.turns:
            conversation.turns += 1
        conversation.say(next(first_message), fresh)
        return conversation

    def ask(conversation: Conversation, now: float) -> None:
        tokens = conversation.tokens
        names = tuple(conversation.names)
        inquiry = Inquiry(tokens, names if tokens % BLOCK else names[:-1], conversation.session)  # the last token is always computed
        asked = Asked(conversation, inquiry, next(answers), now)
        replica = balancer.choose(inquiry, now)
        assert replica is not None
        asked.replica, asked.flight = replica, balancer.began(replica, inquiry, now)
        queue = queues[replica]
        queue.requests += 1
        queue.held += 1
        if queue.held > queue.most:
            queue.most = queue.held
        if queue.running < queue.machine.slots:
            start(queue, asked, now)
        else:
            queue.waiting.append(asked)

    def start(queue: Queue, asked: Asked, now: float) -> None:
        queue.running += 1
        found = queue.cache.use(asked.conversation, len(asked.inquiry.blocks)) * BLOCK
        ran.prompt_tokens += asked.inquiry.tokens
        ran.cached_tokens += found
        queue.computed += asked.inquiry.tokens - found
        queue.free = max(queue.free, now) + (asked.inquiry.tokens - found) / queue.machine.prefill
        at(queue.free, "first", asked)

    def end(asked: Asked, now: float) -> None:
        assert asked.flight is not None
        balancer.ended(asked.flight, Ending.SERVED, now, asked.answer)
        queue, conversation = queues[asked.replica], asked.conversation
        queue.running -= 1
        queue.held -= 1
        conversation.say(asked.answer, fresh)
        queue.cache.grow(conversation, len(conversation.names))
        if queue.waiting:
            start(queue, queue.waiting.popleft(), now)
        conversation.turns -= 1
        if conversation.turns and conversation.tokens < CONTEXT:
            at(now + chance.expovariate(1 / THINKING), "turn", conversation)

    at(next(beginnings), "begin")
    while events:
        now, _, what, subject = heappop(events)
        if what == "first":
            assert isinstance(subject, Asked) and subject.flight is not None
            balancer.first_token(subject.flight, now)
            ran.first_tokens.append(now - subject.at)
            at(now + subject.answer * queues[subject.replica].machine.decode, "end", subject)
        elif what == "end":
            assert isinstance(subject, Asked)
            end(subject, now)
        elif arrived < requests:
            arrived += 1
            if arrived == requests // 2:
                ran.anomalies = balancer.anomalies(now)
            if isinstance(subject, Conversation):
                subject.say(next(next_message), fresh)
                ask(subject, now)
            else:
                at(next(beginnings), "begin")
                ask(begin(), now)
    ran.first_tokens.sort()
    return ran
