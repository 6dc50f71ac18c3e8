"""Decides which tokens run in which step.

There are no separate prefill and decode phases: a sequence's known tokens run ahead of its computed ones, and every step moves some
sequences forward under one budget of tokens. A sequence whose sample is on its way rests until the result is applied. So steps in flight
at the same time sample for disjoint sequences, while chunks of one prompt may follow each other into the pipeline.

The stages run steps in order of their numbers, and each link keeps that order. So a freed block can be allocated again at once: whatever
an older step still writes there, it writes before the new owner does.

Classes of requests: a higher class enters first. If slots or blocks are lacking, the youngest sequence of the lowest class is preempted
and recomputed later. No sequence starves. For those that wait see queue.py. A sequence that was preempted for a higher class before it
had its turn of tokens runs one class higher the next time, until it has had its turn, so it is set back at most once per class. Within a
step, a lower class only counts as having waited some steps less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from shoal.errors import InvalidRequest, QueueFull, RemoteProtocolError
from shoal.request import MAX_ALTERNATIVES, FinishReason, Priority, Request, RequestId, SequenceId, TokenChunk
from shoal.scheduler import dynamic_batching
from shoal.scheduler.admission import Admission
from shoal.scheduler.blocks import BlockPool
from shoal.scheduler.budget import StepBudget
from shoal.scheduler.candidates import candidates, share, too_few
from shoal.scheduler.cost import StepCost, StepLoad
from shoal.scheduler.drafting.speculator import Speculator
from shoal.scheduler.limits import Counters, Limits
from shoal.scheduler.plan import Chunk, Opened, PromptQuery, Sampled, StepPlan, StepResult
from shoal.scheduler.prompt_outputs import answered, outputs, query
from shoal.scheduler.refill import Refill
from shoal.scheduler.sequence import Sequence
from shoal.scheduler.slots import Slots


@dataclass(frozen=True)
class _Sent:
    sequence: Sequence
    life: int
    upto: int
    """Tokens that are computed with it, without the drafts."""
    samples: bool
    asked: PromptQuery | None
    drafts: list[int] = field(default_factory=list[int])


@dataclass(frozen=True)
class _Step:
    """A step in flight."""

    sent: list[_Sent]
    load: StepLoad


class Scheduler:
    def __init__(self, limits: Limits) -> None:
        self.slots = Slots(limits)
        self.speculator = Speculator(self.slots)
        self._admission = Admission(self.slots)
        self.cost: StepCost | None = None
        """What steps cost on the current route; if None, only a step's rows are limited."""
        self.apart: set[RequestId] = set()
        """Requests that run alone in their steps until they sample again, because a step with one of them failed."""
        self._held_up = False
        """One of those found that the step already had rows: they go first in the next one."""
        self._sequences: dict[SequenceId, Sequence] = {}
        self._requests: dict[RequestId, list[Sequence]] = {}
        self._flight: dict[int, _Step] = {}
        self._closed: list[int] = []
        self._next_sequence = 0
        self._next_step = 0

    # State

    @property
    def limits(self) -> Limits:
        return self.slots.limits

    @property
    def counters(self) -> Counters:
        return self.slots.counters

    @property
    def pool(self) -> BlockPool:
        return self.slots.pool

    @property
    def waiting(self) -> int:
        return len(self.slots.waiting)

    def waiting_of(self, priority: Priority) -> int:
        """How many sequences wait in a class."""
        return self.slots.waiting.of(priority)

    @property
    def running(self) -> int:
        return len(self.slots.running)

    @property
    def in_flight(self) -> int:
        """Steps sent whose results are not applied yet."""
        return len(self._flight)

    def fits(self, request: Request) -> None:
        """Raises InvalidRequest if such a request can never run."""
        prompt, most, limit = len(request.prompt), request.samples, self.limits.longest
        least = int(most > 0 or not request.examined)
        if prompt == 0:
            raise InvalidRequest("the prompt is empty", "prompt")
        if prompt + least > limit:
            room = "with one more for an answer at" if least else "at"
            raise InvalidRequest(f"the prompt has {prompt} tokens; {room} most {limit} fit", "prompt", "context_length_exceeded")
        if most < least:
            raise InvalidRequest(f"max_tokens must be at least {least}", "max_tokens")
        if not 0 <= (request.prompt_logprobs or 0) <= MAX_ALTERNATIVES:
            raise InvalidRequest(f"prompt_logprobs must lie in [0, {MAX_ALTERNATIVES}], not {request.prompt_logprobs}", "prompt_logprobs")
        if prompt + most > limit:
            raise InvalidRequest(
                f"the prompt's {prompt} tokens and max_tokens {most} make {prompt + most}; at most {limit} fit",
                "max_tokens",
                "context_length_exceeded",
            )

    def request_of(self, sequence: int) -> RequestId | None:
        found = self._sequences.get(SequenceId(sequence))
        return None if found is None else found.request.id

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are computed, of all sequences."""
        return sum(sequence.computed for sequence in self.slots.running)

    # Input

    @property
    def due(self) -> float | None:
        """When sequences that wait for others are admitted in any case: `schedule` should then be called. None: no one waits for others."""
        return dynamic_batching.due(self.slots.waiting, self.limits.batching)

    def add(self, request: Request, generated: Mapping[int, list[int]] | None = None, now: float = 0.0) -> None:
        """Queues a request. Raises InvalidRequest for one that can never run, QueueFull for one too many.

        The queue's limit counts the sequences that would be ahead: those of a lower class do not count.

        generated: for a request that began under another scheduler, the choices that have not ended, and the tokens that each has
        sampled. They go on as if nothing had happened, however many wait: they were admitted before.
        now: seconds; it counts where sequences are gathered.
        """
        self.fits(request)
        if request.id in self._requests:
            raise InvalidRequest(f"a request {request.id} already exists", "id")
        if generated is None:
            if request.n > self.limits.queue:
                raise InvalidRequest(f"n is {request.n}; the queue holds {self.limits.queue}", "n")
            if (ahead := self.slots.waiting.ahead(request.priority)) + request.n > self.limits.queue:
                raise QueueFull(ahead, self.limits.queue)
        family: list[Sequence] = []
        for choice, said in generated.items() if generated is not None else ((c, []) for c in range(request.n)):
            tokens = [*request.prompt, *said]
            sequence = Sequence(SequenceId(self._next_sequence), request, choice, family[0] if family else None, tokens)
            sequence.came, sequence.held = now, generated is None and self.limits.batching.delay > 0
            self._next_sequence += 1
            self._sequences[sequence.id] = sequence
            family.append(sequence)
            self.slots.waiting.put(sequence)
        self._requests[request.id] = family
        self.counters.prompt_tokens += len(request.prompt)

    def generated(self, request: RequestId) -> dict[int, list[int]] | None:
        """The tokens that each choice has sampled, of those that have not ended: what `add` needs elsewhere. None: it is not known, or
        its prompt is being examined: what was told of that, or summed up for an embedding, is not asked for again."""
        family = self._requests.get(request)
        if family is None or any(sequence.answers and sequence.examined for sequence in family):
            return None
        return {sequence.choice: sequence.tokens[sequence.prompt_length :] for sequence in family}

    def cancel(self, request: RequestId, choice: int | None = None) -> None:
        """Ends a request, or one choice of it, whatever its state. Unknown or finished ones are ignored."""
        for sequence in list(self._requests.get(request, ())):
            if choice is None or sequence.choice == choice:
                self._end(sequence)

    # One route is lost, another takes over

    def rewind(self) -> None:
        """Goes back to what results have confirmed: the steps in flight are lost, and the stages no longer know any tables or samples."""
        self._flight.clear()
        # Whether a fork's block was copied is not known: it starts again.
        for sequence in [s for s in self.slots.running if s.forking]:
            self.slots.preempt(sequence)
        for sequence in self._sequences.values():
            sequence.scheduled = sequence.computed
            sequence.told = 0
            sequence.asked = sequence.examined
            # If everything is computed and only the sample was lost, the last token runs once more.
            sequence.unsampled |= sequence.awaiting and sequence.pending == 0
            sequence.awaiting = sequence.opened = False
        self._closed, self.slots.dropped, self.slots.copies = [], [], []

    def restart(self, limits: Limits) -> list[RequestId]:
        """Call it after `rewind`: all KV blocks are lost, and their number may differ. Ends the requests that can no longer run and
        returns them."""
        self.slots.renew(limits)
        lost = [r for r, family in self._requests.items() if any(s.prompt_length + s.request.samples > limits.longest for s in family)]
        for request in lost:
            self.cancel(request)
        return lost

    def deepen(self, depth: int) -> None:
        """Adapts to a route with another number of stages."""
        self.slots.limits = replace(self.limits, depth=depth)

    def refill(self, spans: list[tuple[int, int]], only: set[int] | None, missing: set[int]) -> Iterator[StepPlan]:
        """Steps that recompute keys and values of some layers, for all that was computed (or for some sequences and those that read their
        blocks). missing: see Refill."""
        self.pool.forget_idle()
        refill = Refill(self.slots, self.cost, self.apart, self._number, self._ended_untold)
        # If a sequence ended meanwhile, nothing records which others shared its blocks.
        wanted = refill.wanted(only if only is not None and only <= self._sequences.keys() else None)
        return refill.steps(spans, wanted, missing)

    def _ended_untold(self, sequence: Sequence) -> None:
        if sequence.id not in self._closed:
            self._closed.append(sequence.id)

    def _number(self) -> int:
        """The number of the next step."""
        self._next_step += 1
        return self._next_step - 1

    # Output

    def schedule(self, now: float = 0.0) -> StepPlan | None:
        """The next step, or None if nothing can run now. now: seconds; it counts where sequences are gathered."""
        while True:
            preempted = self.counters.preemptions
            plan = self._schedule(now)
            # A sequence that gave up its own blocks may have made room for one that this step did not reach.
            if plan is not None or self.counters.preemptions == preempted:
                return plan

    def _schedule(self, now: float) -> StepPlan | None:
        self._admission.admit(self._next_step, now)
        limits, running = self.limits, self.slots.running
        streams = share(running, limits.depth, self.cost.context_share if self.cost is not None and limits.depth > 1 else 0.0)
        if len(self._flight) >= limits.depth and not self.apart and not self._closed and too_few(running, streams):
            return None
        self.slots.provide_short()
        speculates = self.speculator.wanted()
        chunks: list[Chunk] = []
        opened: list[Opened] = []
        sent: list[_Sent] = []
        flying = (step.load for step in self._flight.values())
        budget = StepBudget(limits.step_tokens, limits.chunk, self.cost, limits.wait, any(s.active for s in running), flying)
        offered: Iterable[tuple[Sequence, float]] = candidates(running, streams)
        if self._held_up:
            offered = sorted(offered, key=lambda candidate: candidate[0].request.id not in self.apart)
            self._held_up = False
        for sequence, part in offered:
            if budget.rows <= 0:
                break
            if sequence.done or sequence not in running:  # preempted for another sequence while this step was made
                continue
            alone = sequence.request.id in self.apart
            if alone and chunks:
                self._held_up = True
                continue
            prompt = not sequence.decoding
            wanted = budget.prompt(sequence.scheduled, sequence.stretch, sequence.scoring, part) if prompt else 1
            count = self.slots.provide(sequence, wanted, {s.sequence.id for s in sent}) if wanted else 0
            if count == 0:
                continue
            chunks.append(chunk := self._chunk(sequence, count, opened))
            sent.append(_Sent(sequence, sequence.life, sequence.scheduled, chunk.sample, chunk.asked))
            budget.take(StepLoad.of_chunk(chunk), prompt)
            if alone:
                break
        if not chunks and not self._closed:
            return None
        if speculates and chunks:
            self._draft(chunks, sent, budget)
        copies = [(int(source), int(target)) for source, target in self.slots.copies]
        plan = StepPlan(self._number(), opened, self._closed, self.slots.dropped, copies, chunks)
        self._closed, self.slots.dropped, self.slots.copies = [], [], []
        self._flight[plan.step] = _Step(sent, budget.load)
        self.counters.steps += 1
        self.slots.waiting.age({s.priority for s in self.slots.running})
        return plan

    def _draft(self, chunks: list[Chunk], sent: list[_Sent], budget: StepBudget) -> None:
        """Adds drafts to a step of samples."""
        step = self.speculator.step(len(chunks), self.cost)
        for i, (chunk, one) in enumerate(zip(chunks, sent, strict=True)):
            if drafts := self.speculator.drafts(one.sequence, step, budget.load, budget.rows):
                budget.take(StepLoad.of(chunk.position + 1, len(drafts), len(drafts)), False)
                blocks, tokens = [*chunk.blocks, *self._untold(one.sequence)], [*chunk.tokens, *drafts]
                chunks[i] = msgspec.structs.replace(chunk, tokens=tokens, blocks=blocks, drafts=len(drafts))
                sent[i] = replace(one, drafts=drafts)

    def apply(self, result: StepResult, flight: float = 0.0) -> list[TokenChunk]:
        """Applies a step's result and returns what the clients get. Results come in the order of the steps.

        flight: seconds from sending the step to its result; 0: not known.
        Raises RemoteProtocolError, and applies nothing, if the result does not answer what was asked.
        """
        examined = {found.sequence: found for found in result.examined}
        for sent in self._flight[result.step].sent:
            if sent.asked is not None and not answered(examined.get(sent.sequence.id), sent.asked):
                raise RemoteProtocolError(f"the result of step {result.step} lacks the answers about a prompt")
        came: dict[int, list[int]] = {}
        for sampled in result.sampled:
            came.setdefault(sampled.sequence, []).append(sampled.token)
        drafted = {sent.sequence.id: sent for sent in self._flight[result.step].sent if sent.drafts}
        for id, tokens in came.items():
            drafts = drafted[SequenceId(id)].drafts if id in drafted else []
            if tokens[:-1] != drafts[: len(tokens) - 1]:
                raise RemoteProtocolError(f"the result of step {result.step} goes on after a draft that was wrong")
        out: list[TokenChunk] = []
        step = self._flight.pop(result.step)
        for id, rows in result.degraded.items():
            self._degrade(id, min(rows, max(len(came.get(id, ())), 1)) if id in drafted else rows)
        if self.cost is not None:
            samples = sum(sent.samples + len(sent.drafts) for sent in step.sent)
            self.cost.learn(step.load, result.traces, flight, step.load.rows > samples)
        for sent in step.sent:
            if sent.samples and not sent.sequence.done and sent.sequence.id not in came:
                self._put_off(sent)
            # In another life, the blocks that this step filled have been freed.
            if not sent.sequence.done and sent.life == sent.sequence.life:
                sent.sequence.forking = False
                sent.sequence.computed = sent.upto
                self.slots.name_blocks(sent.sequence)
            if not sent.sequence.done:
                if sent.asked is not None and not (found := examined[sent.sequence.id]).fault:
                    out += outputs(sent.sequence, sent.upto, found)
                out += self._complete(sent.sequence)
        said = set[int]()
        for sampled in result.sampled:
            if sampled.sequence in said:
                self._accept(drafted[SequenceId(sampled.sequence)])
            said.add(sampled.sequence)
            if (chunk := self._sampled(sampled)) is not None:
                out.append(chunk)
        self.counters.drafted_tokens += sum(len(sent.drafts) for sent in drafted.values())
        return out

    def _accept(self, sent: _Sent) -> None:
        """One more of a step's drafts was what was sampled: its row has computed that token."""
        self.counters.accepted_tokens += 1
        if not sent.sequence.done and sent.life == sent.sequence.life:
            sent.sequence.computed += 1
            sent.sequence.scheduled += 1
            self.slots.name_blocks(sent.sequence)

    def degraded(self, result: StepResult) -> None:
        """Counts rows that were computed without an expert. A result of `refill` is only told here."""
        for id, rows in result.degraded.items():
            self._degrade(id, rows)

    def _degrade(self, id: int, rows: int) -> None:
        self.counters.degraded_tokens += rows
        if (sequence := self._sequences.get(SequenceId(id))) is not None:
            sequence.degraded += rows

    def _put_off(self, sent: _Sent) -> None:
        """The last stage could not sample yet. After a preemption everything is computed and sampled anew in any case."""
        sent.sequence.awaiting = False
        sent.sequence.unsampled = sent.life == sent.sequence.life

    def _chunk(self, sequence: Sequence, count: int, opened: list[Opened]) -> Chunk:
        if not sequence.opened and sequence.samples:
            sequence.opened = True
            sampling, request = sequence.request.sampling, sequence.request
            if sequence.choice:
                sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + sequence.choice) % 2**64)
            prompt = request.prompt if sampling.repetition_penalty != 1 else []
            opened.append(Opened(sequence.id, sampling, prompt, sequence.tokens[sequence.prompt_length :]))
        at = sequence.scheduled - sequence.unsampled
        sequence.scheduled, sequence.unsampled = at + count, False
        sample = sequence.pending == 0 and sequence.samples
        sequence.awaiting = sample
        sequence.last_step = self._next_step
        return Chunk(sequence.id, at, sequence.tokens[at : at + count], self._untold(sequence), sample, query(sequence, at))

    def _untold(self, sequence: Sequence) -> list[int]:
        """The blocks of its table that the stages are told now."""
        blocks = [int(block) for block in sequence.table[sequence.told :]]
        sequence.told = len(sequence.table)
        return blocks

    # Results

    def _complete(self, sequence: Sequence) -> list[TokenChunk]:
        """Ends a choice that samples nothing."""
        if not sequence.complete:
            return []
        request = sequence.request
        self._end(sequence)
        finish = FinishReason.STOP if request.embed else FinishReason.LENGTH
        return [TokenChunk(request.id, sequence.choice, None, finish=finish, cached=sequence.cached, degraded=sequence.degraded)]

    def _sampled(self, sampled: Sampled) -> TokenChunk | None:
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
        return TokenChunk(
            request.id, sequence.choice, token, sampled.logprob, sampled.alternatives, finish, sequence.cached, degraded=sequence.degraded
        )

    def _end(self, sequence: Sequence) -> None:
        if sequence.done:
            return
        sequence.done = True
        if sequence in self.slots.running:
            self.slots.running.remove(sequence)
            self.slots.give_up(sequence)
        else:
            self.slots.waiting.remove(sequence)
        if sequence.opened or sequence.told:  # refill steps send tables of sequences that are not open yet
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
            assert (sequence in self.slots.running) != (sequence in self.slots.waiting), "a sequence is in no list, or in two"
            assert sequence in self.slots.running or not sequence.table, "a waiting sequence holds blocks"
            assert not (sequence.held and (sequence in self.slots.running or sequence.life)), "a sequence waits for others, and ran"
            assert sequence.computed <= sequence.scheduled <= len(sequence.tokens), "computed runs ahead"
            assert not sequence.asking or sequence.scheduled <= sequence.asked, "rows of the prompt run and are not asked about"
            assert not sequence.examining or sequence.computed <= sequence.examined, "rows of the prompt are computed and have not answered"
            assert sequence.examined <= sequence.asked, "what was not asked is answered"
            put_off = sequence in self.slots.running and sequence.computed == len(sequence.tokens) and not sequence.awaiting
            assert not sequence.unsampled or put_off, "a sample was put off, and not all before it is computed"
        assert self.running <= self.limits.slots, "too many slots"
