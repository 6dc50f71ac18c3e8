"""Which tokens run in which step.

There is no prefill and no decode phase: a sequence's known tokens run ahead of its computed ones, and every step moves some
sequences forward under one budget of tokens. A sequence whose draw is on its way rests until the result is applied; steps in
flight at the same time are therefore over disjoint draws, while chunks of one prompt may follow each other into the pipe.

The stages run steps in the order of their numbers, each link keeps that order, and so a block that was given up may be handed
out again at once: whatever an older step still writes there, it writes before the new owner does.

Classes of requests: whoever is of a higher class enters first, and where lanes or blocks are lacking the youngest of the lowest class
gives way and is computed anew later. Nobody starves of it. For those that wait see queue.py. One that gave way to a higher class before it
had its turn of tokens runs one class higher the next time, until it has, so it is set back once per class at most. And in a step a lower
class counts as having rested some steps less, no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec

from shoal.errors import InvalidRequest, QueueFull, RemoteProtocolError
from shoal.request import MAX_ALTERNATIVES, BlockId, FinishReason, Priority, Request, RequestId, Score, SequenceId, TokenChunk
from shoal.scheduler.blocks import BlockPool, chain
from shoal.scheduler.budget import StepBudget
from shoal.scheduler.cost import Load, StepCost
from shoal.scheduler.plan import Asked, Chunk, Examined, Opened, Sampled, StepPlan, StepResult
from shoal.scheduler.queue import WaitingQueue
from shoal.scheduler.sequence import Sequence

_TURN = 32
"""Tokens that a sequence draws in its turn."""
_DRAW_LEAD, _PROMPT_LEAD = 8, 64
"""Steps that a draw rested, or that a prompt came, earlier than it did, per class that it is higher."""
_TOTALS = 32  # sums of hidden states that one result brings: 2 MiB where a hidden state is 8,192 wide


@dataclass(frozen=True)
class Limits:
    blocks: int
    block_tokens: int
    context: int
    """Most tokens of a sequence."""
    lanes: int
    """Most sequences that run at once."""
    step_tokens: int
    queue: int
    depth: int = 1
    """Steps that the driver keeps in flight: draws are spread over as many steps, prompts cut into as many smaller chunks."""
    ageing: int = 256
    """Steps that a class may wait while none of it runs; then its first in line rises a class."""
    wait: float = 0.0
    """Most seconds, about, that a running stream waits for others' prompts; 0: as long as `step_tokens` take."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that can ever run."""
        return min(self.context, self.blocks * self.block_tokens)

    @property
    def chunk(self) -> int:
        """Tokens of a prompt in one step."""
        return max(min(self.step_tokens, 2 * self.block_tokens), self.step_tokens // self.depth // self.block_tokens * self.block_tokens)


@dataclass
class Counters:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0


@dataclass(frozen=True)
class _Sent:
    sequence: Sequence
    life: int
    upto: int
    draws: bool
    asked: Asked | None


@dataclass(frozen=True)
class _Step:
    """In flight."""

    sent: list[_Sent]
    load: Load


class Scheduler:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.cost: StepCost | None = None
        """What steps take on the route that is driven; without, a step is bound by its rows alone."""
        self.counters = Counters()
        self.pool = BlockPool(limits.blocks)
        self.apart: set[RequestId] = set()
        """Requests that run in steps of their own until they draw again, because a step with one of them failed."""
        self._held_up = False
        """One of those found a step begun: they go first in the next one."""
        self._sequences: dict[SequenceId, Sequence] = {}
        self._requests: dict[RequestId, list[Sequence]] = {}
        self._waiting = WaitingQueue(limits.ageing)
        self._running: list[Sequence] = []  # oldest first
        self._flight: dict[int, _Step] = {}
        self._closed: list[int] = []
        self._dropped: list[int] = []
        self._copies: list[tuple[BlockId, BlockId]] = []  # for the next plan
        self._next_sequence = 0
        self._next_step = 0

    # What there is

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def waiting_of(self, priority: Priority) -> int:
        """Sequences that wait in a class."""
        return self._waiting.of(priority)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def in_flight(self) -> int:
        """Steps sent whose results were not applied."""
        return len(self._flight)

    def fits(self, request: Request) -> None:
        """Raises InvalidRequest where such a request can never run."""
        prompt, drawn, limit = len(request.prompt), request.draws, self.limits.longest
        least = int(drawn > 0 or not request.examined)
        if prompt == 0:
            raise InvalidRequest("the prompt is empty", "prompt")
        if prompt + least > limit:
            room = "with one more for an answer at" if least else "at"
            raise InvalidRequest(f"the prompt has {prompt} tokens; {room} most {limit} fit", "prompt", "context_length_exceeded")
        if drawn < least:
            raise InvalidRequest(f"max_tokens must be at least {least}", "max_tokens")
        if not 0 <= (request.prompt_logprobs or 0) <= MAX_ALTERNATIVES:
            raise InvalidRequest(f"prompt_logprobs must lie in [0, {MAX_ALTERNATIVES}], not {request.prompt_logprobs}", "prompt_logprobs")
        if prompt + drawn > limit:
            raise InvalidRequest(
                f"the prompt's {prompt} tokens and max_tokens {drawn} make {prompt + drawn}; at most {limit} fit",
                "max_tokens",
                "context_length_exceeded",
            )

    def request_of(self, sequence: int) -> RequestId | None:
        found = self._sequences.get(SequenceId(sequence))
        return None if found is None else found.request.id

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are there, of all sequences."""
        return sum(sequence.computed for sequence in self._running)

    # What comes in

    def add(self, request: Request, generated: Mapping[int, list[int]] | None = None) -> None:
        """Queues a request. Raises InvalidRequest for one that can never run, QueueFull for one too many.

        The queue's bound is on how many would be ahead: those of a lower class do not count.

        generated: of a request that began under another scheduler, the choices that have not ended, and what each has said. They go
        on as if nothing had happened, and however many wait: they were let in once.
        """
        self.fits(request)
        if request.id in self._requests:
            raise InvalidRequest(f"there is a request {request.id} already", "id")
        if generated is None:
            if request.n > self.limits.queue:
                raise InvalidRequest(f"n is {request.n}; the queue holds {self.limits.queue}", "n")
            if (ahead := self._waiting.ahead(request.priority)) + request.n > self.limits.queue:
                raise QueueFull(ahead, self.limits.queue)
        family: list[Sequence] = []
        for choice, said in generated.items() if generated is not None else ((c, []) for c in range(request.n)):
            tokens = [*request.prompt, *said]
            sequence = Sequence(SequenceId(self._next_sequence), request, choice, family[0] if family else None, tokens)
            self._next_sequence += 1
            self._sequences[sequence.id] = sequence
            family.append(sequence)
            self._waiting.put(sequence)
        self._requests[request.id] = family
        self.counters.prompt_tokens += len(request.prompt)

    def cancel(self, request: RequestId, choice: int | None = None) -> None:
        """Ends a request, or one choice of it, wherever it stands. Unknown or finished ones are left alone."""
        for sequence in list(self._requests.get(request, ())):
            if choice is None or sequence.choice == choice:
                self._end(sequence)

    # A route is lost, another one takes over

    def rewind(self) -> None:
        """Back to what results have confirmed: the steps in flight are lost, and stages know no tables and draws any more."""
        self._flight.clear()
        for sequence in [s for s in self._running if s.forking]:
            self._preempt(sequence)
        for sequence in self._sequences.values():
            sequence.scheduled = sequence.computed
            sequence.told = 0
            sequence.asked = sequence.examined
            sequence.undrawn |= sequence.awaiting and sequence.pending == 0
            sequence.awaiting = sequence.opened = False
        self._closed, self._dropped, self._copies = [], [], []

    def restart(self, limits: Limits) -> list[RequestId]:
        """After `rewind`: no KV block is left and there may be others. Answers the requests that can no longer run; they have ended."""
        self.limits = limits
        for sequence in reversed(self._running[:]):
            self._preempt(sequence)
        self._dropped = []
        self.pool = BlockPool(limits.blocks)
        lost = [r for r, family in self._requests.items() if any(s.prompt_length + s.request.draws > limits.longest for s in family)]
        for request in lost:
            self.cancel(request)
        return lost

    def deepen(self, depth: int) -> None:
        """The route has another number of stages."""
        self.limits = replace(self.limits, depth=depth)

    def refill(self, spans: list[tuple[int, int]], only: set[int] | None, missing: set[int]) -> Iterator[StepPlan]:
        """Steps that compute keys and values of some layers anew, for all that was computed (or that of some sequences and of
        those that read their blocks). Blocks that are shared are filled once; blocks held by none are given up.

        missing: sequences of which it turns out, while the steps run, that they cannot be refilled; no more steps are made for them.
        A sequence that ends meanwhile is filled all the same: others may share its blocks.
        """
        self.pool.forget_idle()
        wanted = [s for s in self._running if s.computed]
        if only is not None and only <= self._sequences.keys():  # of one that has ended meanwhile nobody knows who shared its blocks
            wanted = self._readers(wanted, only)
        filled: set[BlockId] = set()
        chunks: list[Chunk] = []
        budget = self.limits.step_tokens
        for sequence, table, untold in [(s, list(s.table), s.table[s.told :]) for s in wanted]:
            alone = sequence.request.id in self.apart
            for at, upto in self._unfilled(sequence.computed, table, filled):
                while at < upto and sequence.id not in missing:
                    if budget <= 0 or (chunks and (alone or chunks[-1].sequence == sequence.id)):  # a step names a sequence once
                        yield self._refilling(chunks, spans)
                        chunks, budget = [], self.limits.step_tokens
                        continue
                    rows = min(upto - at, budget)
                    fitting = self._refillable(chunks, at, rows)
                    if fitting == 0:
                        budget = 0
                        continue
                    chunks.append(Chunk(sequence.id, at, sequence.tokens[at : at + fitting], [int(b) for b in untold], False))
                    sequence.told, untold = len(table), []
                    if sequence.done and sequence.id not in self._closed:  # it ended before the stages were told of it
                        self._closed.append(sequence.id)
                    budget = 0 if alone or fitting < rows else budget - fitting
                    at += fitting
        if chunks:
            yield self._refilling(chunks, spans)

    def _refillable(self, chunks: list[Chunk], at: int, rows: int) -> int:
        """How many of the rows can join a step that refills: whatever comes next, another loss or the first token, waits for it. At least one of the first."""
        if self.cost is None or not self.limits.wait:
            return rows
        load = sum((Load.of_chunk(chunk) for chunk in chunks), Load())
        fitting = self.cost.fitting(load, at, rows, False, 2 * self.limits.wait)
        return fitting if chunks else max(fitting, 1)

    def _unfilled(self, computed: int, table: list[BlockId], filled: set[BlockId]) -> Iterator[tuple[int, int]]:
        """Runs of computed tokens whose blocks no sequence before this one has filled; they count as filled then."""
        size, at = self.limits.block_tokens, 0
        own = [block not in filled for block in table]
        filled.update(table[: self._blocks_for(computed)])
        while at < computed:
            upto = at
            while upto < computed and own[upto // size]:
                upto += size
            if upto > at:
                yield at, min(upto, computed)
            at = max(upto, at + size)

    def _readers(self, filled: list[Sequence], only: set[int]) -> list[Sequence]:
        """Some sequences, and whoever read one of their blocks, or of a reader's, when it was filled in this order."""
        found: list[Sequence] = []
        touched = {block for s in filled if s.id in only for block in s.table}
        for sequence in filled:
            if not touched.isdisjoint(sequence.table):
                found.append(sequence)
                touched.update(sequence.table)
        return found

    def _refilling(self, chunks: list[Chunk], spans: list[tuple[int, int]]) -> StepPlan:
        plan = StepPlan(self._next_step, [], [], [], [], chunks, spans)
        self._next_step += 1
        return plan

    # What goes out

    def schedule(self) -> StepPlan | None:
        """The next step, or None where nothing can run now."""
        while True:
            preempted = self.counters.preemptions
            plan = self._schedule()
            # A sequence that gave up its own blocks may have made room for one that this step did not come to.
            if plan is not None or self.counters.preemptions == preempted:
                return plan

    def _schedule(self) -> StepPlan | None:
        self._admit()
        if self._too_few():
            return None
        chunks: list[Chunk] = []
        opened: list[Opened] = []
        sent: list[_Sent] = []
        limits = self.limits
        streams = any(s.active for s in self._running)
        flying = (step.load for step in self._flight.values())
        budget = StepBudget(limits.step_tokens, limits.chunk, self.cost, limits.wait, streams, flying)
        candidates: Iterable[tuple[Sequence, float]] = self._candidates()
        if self._held_up:
            candidates = sorted(candidates, key=lambda candidate: candidate[0].request.id not in self.apart)
            self._held_up = False
        for sequence, part in candidates:
            if budget.rows <= 0:
                break
            if sequence.done or sequence not in self._running:  # preempted for another's sake while this step was made
                continue
            alone = sequence.request.id in self.apart
            if alone and chunks:
                self._held_up = True
                continue
            prompt = not sequence.decoding
            wanted = budget.prompt(sequence.scheduled, sequence.stretch, sequence.scoring, part) if prompt else 1
            count = self._provide(sequence, wanted, {s.sequence.id for s in sent}) if wanted else 0
            if count == 0:
                continue
            chunks.append(chunk := self._chunk(sequence, count, opened))
            sent.append(_Sent(sequence, sequence.life, sequence.scheduled, chunk.sample, chunk.asked))
            budget.take(Load.of_chunk(chunk), prompt)
            if alone:
                break
        if not chunks and not self._closed:
            return None
        copies = [(int(source), int(target)) for source, target in self._copies]
        plan = StepPlan(self._next_step, opened, self._closed, self._dropped, copies, chunks)
        self._closed, self._dropped, self._copies = [], [], []
        self._flight[plan.step] = _Step(sent, budget.load)
        self._next_step += 1
        self.counters.steps += 1
        self._waiting.age({s.priority for s in self._running})
        return plan

    def apply(self, result: StepResult, flight: float = 0.0) -> list[TokenChunk]:
        """Takes a step's result over and answers what the clients get. Results come in the order of the steps.

        flight: seconds from the sending of the step to its result; 0 where nobody knows.

        Raises RemoteProtocolError, and takes nothing over, where it does not answer what was asked.
        """
        examined = {found.sequence: found for found in result.examined}
        for sent in self._flight[result.step].sent:
            if sent.asked is not None and not _answers(examined.get(sent.sequence.id), sent.asked):
                raise RemoteProtocolError(f"the result of step {result.step} does not say what was asked about a prompt")
        drawn = {sampled.sequence for sampled in result.sampled}
        out: list[TokenChunk] = []
        step = self._flight.pop(result.step)
        if self.cost is not None:
            self.cost.learn(step.load, result.traces, flight, step.load.rows > sum(sent.draws for sent in step.sent))
        for sent in step.sent:
            if sent.draws and not sent.sequence.done and sent.sequence.id not in drawn:
                self._put_off(sent)
            if not sent.sequence.done and sent.life == sent.sequence.life:
                sent.sequence.forking = False
                sent.sequence.computed = sent.upto
                self._name_blocks(sent.sequence)
            if not sent.sequence.done:
                out += self._examined(sent, examined.get(sent.sequence.id))
                out += self._complete(sent.sequence)
        return out + [chunk for sampled in result.sampled if (chunk := self._drawn(sampled)) is not None]

    def _put_off(self, sent: _Sent) -> None:
        """The last stage could not draw yet. After a preemption all is computed, and drawn for, anew in any case."""
        sent.sequence.awaiting = False
        sent.sequence.undrawn = sent.life == sent.sequence.life

    # Admission

    def _admit(self) -> None:
        passed: list[Sequence] = []
        while (sequence := self._waiting.first) is not None:
            if sequence.awaiting or ((parent := self._forks_from(sequence)) is not None and parent.computed < parent.prompt_length):
                self._waiting.remove(sequence)
                passed.append(sequence)
                continue
            if not self._let_in(sequence):
                break
            self._waiting.remove(sequence)
            self._running.append(sequence)
            sequence.entered = self._next_step, len(sequence.tokens)
            sequence.standing = Priority(max(sequence.priority - sequence.set_back, Priority.URGENT))
        for sequence in passed:
            self._waiting.put(sequence)

    def _forks_from(self, sequence: Sequence) -> Sequence | None:
        """Whose prompt it shares block by block, or will when that is computed."""
        parent = sequence.parent
        return parent if parent is not None and not parent.done and parent.life == 0 else None

    def _let_in(self, sequence: Sequence) -> bool:
        """Gives a waiting sequence its first blocks where a lane is free; lower classes give way where one is not, or blocks are lacking."""
        while True:
            parent = self._forks_from(sequence)
            if self.running < self.limits.lanes and (self._enter(sequence) if parent is None else self._fork(sequence, parent)):
                return True
            lower = [s for s in self._running if s.standing > sequence.priority]
            if not lower or self._lacking(sequence) > sum(len(s.table) for s in lower):
                return False
            self._preempt(max(lower, key=lambda s: s.rank), sequence)

    def _lacking(self, sequence: Sequence) -> int:
        """Blocks that have to become free before it can enter, about: found ones may be among the available."""
        needed = (
            2
            if self._forks_from(sequence) is not None
            else self._blocks_for(len(sequence.tokens) + sequence.draws) - len(self._found(sequence))
        )
        return needed - self.pool.available

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)

    def _found(self, sequence: Sequence) -> list[BlockId]:
        """The blocks that its tokens begin with, as far as they are found by name."""
        found: list[BlockId] = []
        for digest in self._digests(sequence, sequence.findable // self.limits.block_tokens):
            block = self.pool.find(digest)
            if block is None:
                break
            found.append(block)
        return found

    def _enter(self, sequence: Sequence) -> bool:
        """Takes the blocks that are found by name, if the rest of the known tokens fits beside them."""
        found = self._found(sequence)
        for block in found:
            self.pool.share(block)
        if self._blocks_for(len(sequence.tokens) + sequence.draws) - len(found) > self.pool.available and self._running:
            for block in reversed(found):
                self.pool.release(block)
            return False
        sequence.table = found
        sequence.named = len(found)
        sequence.scheduled = sequence.computed = len(found) * self.limits.block_tokens
        if sequence.life == 0:
            sequence.cached = sequence.scheduled
            self.counters.cached_tokens += sequence.scheduled
        return True

    def _fork(self, sequence: Sequence, parent: Sequence) -> bool:
        """Shares the parent's prompt; the block that the child will write into is copied."""
        whole = (parent.prompt_length - 1) // self.limits.block_tokens
        if self.pool.available < 2:
            return False
        for block in parent.table[:whole]:
            self.pool.share(block)
        own = self.pool.allocate()
        self._copies.append((parent.table[whole], own))
        sequence.table = [*parent.table[:whole], own]
        sequence.named = whole
        sequence.scheduled = sequence.computed = parent.prompt_length - 1
        sequence.cached = parent.prompt_length - 1
        sequence.forking = True
        return True

    def _digests(self, sequence: Sequence, count: int) -> list[bytes]:
        size = self.limits.block_tokens
        while len(sequence.digests) < count:
            at = len(sequence.digests)
            previous = sequence.digests[-1] if at else b""
            sequence.digests.append(chain(previous, sequence.tokens[at * size : (at + 1) * size]))
        return sequence.digests[:count]

    def _name_blocks(self, sequence: Sequence) -> None:
        full = sequence.computed // self.limits.block_tokens
        if full > sequence.named:
            digests = self._digests(sequence, full)
            for i in range(sequence.named, full):
                self.pool.name(sequence.table[i], digests[i])
            sequence.named = full

    # One step

    @property
    def _share(self) -> int:
        """Draws of a step where all streams are spread evenly over the stages."""
        return -(-sum(1 for s in self._running if s.active) // self.limits.depth)

    def _too_few(self) -> bool:
        """Every stage has a step, there is no prompt to go on with, and the draws that are ready are fewer than a step's share: the others are on
        their way. Streams that came one by one thus come to share steps, whose weights are read once for all of them."""
        if len(self._flight) < self.limits.depth or self.apart or self._closed:
            return False
        if any(not s.awaiting and not s.decoding and s.pending > 0 for s in self._running):
            return False
        return sum(1 for s in self._running if s.decoding) < self._share

    def _candidates(self) -> Iterator[tuple[Sequence, float]]:
        """Sequences that can move: draws that rested longest first, then prompts, oldest first. With a prompt: how much it may take of what the step has left.

        A higher class counts as having rested, or come, some steps longer. Where the oldest prompt is not the shortest of its class, the shortest
        takes up to half before it: so a short one does not wait for all that are ahead of it, and the oldest one always goes on.
        """
        decoding = sorted((s for s in self._running if s.decoding), key=lambda s: s.last_step + _DRAW_LEAD * s.standing)
        for sequence in decoding[: self._share]:
            yield sequence, 1.0
        prompts = [s for s in self._running if not s.awaiting and not s.decoding and s.pending > 0]
        prompts.sort(key=lambda s: s.entered[0] + _PROMPT_LEAD * s.standing)
        if not prompts:
            return
        shortest = min((s for s in prompts if s.standing <= prompts[0].standing), key=lambda s: s.pending)
        totals = _TOTALS
        for sequence in prompts if shortest is prompts[0] else (shortest, *(s for s in prompts if s is not shortest)):
            if totals or not sequence.request.embed:
                totals -= sequence.request.embed
                yield sequence, 0.5 if sequence is shortest and shortest is not prompts[0] else 1.0

    def _provide(self, sequence: Sequence, count: int, taken: set[SequenceId]) -> int:
        """Gives the sequence blocks for its next `count` tokens, preempting the youngest of the lowest class for them; how many it can run."""
        size = self.limits.block_tokens
        while True:
            room = len(sequence.table) * size - sequence.scheduled + sequence.undrawn
            if room >= count:
                return count
            if self.pool.available:
                sequence.table.append(self.pool.allocate())
                continue
            victim = max((s for s in self._running if s.id not in taken), key=lambda s: s.rank, default=None)
            if victim is None or victim is sequence:
                if room > 0:
                    return min(room, count)
                if victim is sequence and self.running > 1:
                    self._preempt(sequence, min(self._running, key=lambda s: s.rank))
                return 0
            self._preempt(victim, sequence)

    def _chunk(self, sequence: Sequence, count: int, opened: list[Opened]) -> Chunk:
        if not sequence.opened and sequence.draws:
            sequence.opened = True
            sampling, request = sequence.request.sampling, sequence.request
            if sequence.choice:
                sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + sequence.choice) % 2**64)
            prompt = request.prompt if sampling.repetition_penalty != 1 else []
            opened.append(Opened(sequence.id, sampling, prompt, sequence.tokens[sequence.prompt_length :]))
        at = sequence.scheduled - sequence.undrawn
        sequence.scheduled, sequence.undrawn = at + count, False
        sample = sequence.pending == 0 and sequence.draws
        sequence.awaiting = sample
        sequence.last_step = self._next_step
        blocks = [int(b) for b in sequence.table[sequence.told :]]
        sequence.told = len(sequence.table)
        return Chunk(sequence.id, at, sequence.tokens[at : at + count], blocks, sample, self._asked(sequence, at))

    def _asked(self, sequence: Sequence, at: int) -> Asked | None:
        """About the tokens from `at` to those that are scheduled."""
        if not sequence.asking or at < sequence.asked:
            return None
        request = sequence.request
        sequence.asked = min(sequence.scheduled, sequence.prompt_length)
        followers = request.prompt[at + 1 : sequence.scheduled + 1] if request.prompt_logprobs is not None else []
        return Asked(followers, request.prompt_logprobs or 0, request.embed)

    def _preempt(self, sequence: Sequence, favoured: Sequence | None = None) -> None:
        """Takes a sequence's blocks away, for another's sake; its tokens are known and will be computed anew."""
        if len(sequence.tokens) - sequence.entered[1] >= _TURN:
            sequence.set_back = 0
        elif favoured is not None and favoured.standing < sequence.standing:
            sequence.set_back += 1
        self._running.remove(sequence)
        self._give_up_table(sequence)
        if sequence.told:
            self._dropped.append(sequence.id)
        sequence.scheduled = sequence.computed = sequence.told = sequence.named = 0
        sequence.life += 1
        sequence.forking = sequence.undrawn = False
        self._waiting.put(sequence)
        self.counters.preemptions += 1

    def _give_up_table(self, sequence: Sequence) -> None:
        # Last block first: the start of a prompt is what others share, so it should be the last to be given away.
        for block in reversed(sequence.table):
            self.pool.release(block)
        sequence.table = []

    # Results

    def _examined(self, sent: _Sent, found: Examined | None) -> list[TokenChunk]:
        """What is now known of a prompt, once for each of its tokens, in their order."""
        if sent.asked is None or found is None or found.fault:
            return []
        sequence, request, out = sent.sequence, sent.sequence.request, list[TokenChunk]()
        first = [] if sequence.examined or request.prompt_logprobs is None else [Score(request.prompt[0], None)]
        if scores := (*first, *found.scores):
            out.append(TokenChunk(request.id, 0, None, cached=sequence.cached, scores=scores))
        sequence.examined = min(sent.upto, sequence.prompt_length)
        if request.embed:
            sequence.mean.add(found.total)
            if not sequence.examining:
                mean = sequence.mean.over(sequence.prompt_length)
                out.append(TokenChunk(request.id, 0, None, cached=sequence.cached, embedding=mean))
        return out

    def _complete(self, sequence: Sequence) -> list[TokenChunk]:
        """The end of a choice of which nothing is drawn."""
        if not sequence.complete:
            return []
        request = sequence.request
        self._end(sequence)
        finish = FinishReason.STOP if request.embed else FinishReason.LENGTH
        return [TokenChunk(request.id, sequence.choice, None, finish=finish, cached=sequence.cached)]

    def _drawn(self, sampled: Sampled) -> TokenChunk | None:
        sequence = self._sequences.get(SequenceId(sampled.sequence))
        if sequence is None or sequence.done:
            return None  # cancelled while the step ran
        sequence.awaiting = False
        request = sequence.request
        self.apart.discard(request.id)
        finish: FinishReason | None = None
        token: int | None = sampled.token
        sequence.tokens.append(sampled.token)
        self.counters.generated_tokens += 1
        if sampled.token in request.stop_tokens:
            finish, token = FinishReason.STOP, None
        elif sequence.generated >= request.max_tokens:
            finish = FinishReason.LENGTH
        if finish is not None:
            self._end(sequence)
        return TokenChunk(request.id, sequence.choice, token, sampled.logprob, sampled.alternatives, finish, sequence.cached)

    def _end(self, sequence: Sequence) -> None:
        if sequence.done:
            return
        sequence.done = True
        if sequence in self._running:
            self._running.remove(sequence)
            self._give_up_table(sequence)
        else:
            self._waiting.remove(sequence)
        if sequence.opened or sequence.told:  # a refill tells tables of sequences that are not open yet
            self._closed.append(sequence.id)
        del self._sequences[sequence.id]
        family = self._requests[sequence.request.id]
        family.remove(sequence)
        if not family:
            del self._requests[sequence.request.id]
            self.apart.discard(sequence.request.id)

    def check(self) -> None:
        """Asserts the invariants that hold between any two calls."""
        self.pool.check([s.table for s in self._sequences.values()])
        for sequence in self._sequences.values():
            assert (sequence in self._running) != (sequence in self._waiting), "a sequence is in no list, or in two"
            assert sequence in self._running or not sequence.table, "a waiting sequence holds blocks"
            assert sequence.computed <= sequence.scheduled <= len(sequence.tokens), "computed runs ahead"
            assert not sequence.asking or sequence.scheduled <= sequence.asked, "rows of the prompt run and are not asked about"
            assert not sequence.examining or sequence.computed <= sequence.examined, "rows of the prompt are computed and have not answered"
            assert sequence.examined <= sequence.asked, "what was not asked is answered"
            put_off = sequence in self._running and sequence.computed == len(sequence.tokens) and not sequence.awaiting
            assert not sequence.undrawn or put_off, "a draw was put off, and not all before it is computed"
        assert self.running <= self.limits.lanes, "too many lanes"


def _answers(found: Examined | None, asked: Asked) -> bool:
    return found is not None and (bool(found.fault) or (len(found.scores) == len(asked.followers) and bool(found.total) == asked.total))
