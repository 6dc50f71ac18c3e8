"""A stage without a model: it keeps what a real one would keep, block by block, and draws from that alone.

The "keys and values" of a token are a hash of the token and of every cell before it, read through the block table. So a
wrong table, a copy that was forgotten, a block that was handed out too early or a prefix that is not one all change
what is drawn next, and the stream differs from `expected`.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Sequence

from shoal.request import Alternative, FinishReason, Priority, Request, RequestId, SamplingParams, Score, TokenChunk
from shoal.scheduler.drafting.draft import Draft
from shoal.scheduler.limits import ALONE, Batching, Limits
from shoal.scheduler.plan import Chunk, PromptOutputs, Sampled, StepPlan, StepResult
from shoal.scheduler.scheduler import Scheduler
from shoal.scheduler.sequence import Sequence as ScheduledSequence
from shoal.wire import messages

VOCABULARY = 23
STOP = 0


def cell(before: Sequence[int], token: int) -> int:
    return zlib.crc32(repr((tuple(before), token)).encode())


def draw(last: int, seed: int) -> int:
    return zlib.crc32(f"{last} {seed}".encode()) % VOCABULARY


def drawn(chunk: Chunk, values: Sequence[int], seed: int) -> list[Sampled]:
    """values: the last cells of the chunk's tokens."""
    first, out = len(values) - 1 - chunk.drafts, list[Sampled]()
    for value, draft in zip(values[first:], [*chunk.tokens[first + 1 :], None], strict=True):
        out.append(Sampled(chunk.sequence, draw(value, seed)))
        if out[-1].token != draft:
            break
    return out


def score(before: int, token: int, count: int) -> Score:
    """Of a token, by the cell of the one before it."""

    def logprob(token: int) -> float:
        return -(zlib.crc32(f"{before} {token}".encode()) % 10_000) / 100

    return Score(token, logprob(token), tuple(Alternative(t, logprob(t)) for t in range(count)))


def examined(chunk: Chunk, values: Sequence[int]) -> list[PromptOutputs]:
    """values: the last cells of the chunk's tokens."""
    if chunk.asked is None:
        return []
    scores = [score(value, token, chunk.asked.alternatives) for value, token in zip(values, chunk.asked.followers, strict=False)]
    return [PromptOutputs(chunk.sequence, scores, struct.pack("<2d", sum(values), len(values)) if chunk.asked.total else b"")]


def last_cells(tokens: Sequence[int], layers: int) -> list[int]:
    cells: list[list[int]] = [[] for _ in range(layers)]
    out: list[int] = []
    for value in tokens:
        for layer in cells:
            layer.append(value := cell(layer, value))
        out.append(value)
    return out


def expected_scores(request: Request, layers: int = 1) -> list[Score]:
    if request.prompt_logprobs is None:
        return []
    cells, prompt = last_cells(request.prompt, layers), request.prompt
    return [Score(prompt[0], None), *(score(c, t, request.prompt_logprobs) for c, t in zip(cells, prompt[1:], strict=False))]


def expected_embedding(request: Request, layers: int = 1) -> bytes:
    """The mean cell, and a one that is wrong where a token counted twice or not at all."""
    cells = last_cells(request.prompt, layers)
    return struct.pack("<2f", sum(cells) / len(cells), 1.0) if request.embed else b""


def expected(request: Request, choice: int, layers: int = 1) -> tuple[list[int], FinishReason]:
    """What a choice must say: its tokens, the one that stops it left out."""
    cells: list[list[int]] = [[] for _ in range(layers)]
    tokens: list[int] = []

    def compute(value: int) -> int:
        for layer in cells:
            layer.append(value := cell(layer, value))
        return value

    if not request.samples:
        return [], FinishReason.STOP if request.embed else FinishReason.LENGTH
    last = [compute(token) for token in request.prompt][-1]
    while True:
        token = draw(last, (request.sampling.seed + choice) % 2**64)
        if token in request.stop_tokens:
            return tokens, FinishReason.STOP
        tokens.append(token)
        if len(tokens) == request.max_tokens:
            return tokens, FinishReason.LENGTH
        last = compute(token)


class Foreseen:
    """Drafts of what a choice will say, and after it; every now and then a token is wrong."""

    def __init__(self, sequence: ScheduledSequence, layers: int) -> None:
        request = sequence.request
        self._answer, self._begin = [*expected(request, sequence.choice, layers)[0], *request.stop_tokens, 1, 1, 1], sequence.prompt_length

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        at = len(tokens) - self._begin
        coming = self._answer[at : at + most]
        return Draft([draw(token, 5) if draw(at + i, 6) < 5 else token for i, token in enumerate(coming)], 2 + at % 20)


def put_off(result: StepResult, late: int) -> StepResult:
    """Without the samples whose bit is set, and what followed them in their chunks."""
    gone, kept = set[int](), list[Sampled]()
    for i, sampled in enumerate(result.sampled):
        if late >> i & 1:
            gone.add(sampled.sequence)
        if sampled.sequence not in gone:
            kept.append(sampled)
    return StepResult(result.step, kept, [], examined=result.examined)


class ToyStage:
    """Carries plans out in their order, as StageExecutor does."""

    def __init__(self, blocks: int, block_tokens: int, after: ToyStage | None = None) -> None:
        """after: the stage of an older epoch, whose keys and values are still good."""
        self._cells: list[list[int]] = [[-1] * block_tokens for _ in range(blocks)] if after is None else after._cells
        self._size = block_tokens
        self._tables: dict[int, list[int]] = {}
        self._seeds: dict[int, int] = {}

    def __len__(self) -> int:
        """Sequences that it knows of."""
        return len(self._tables.keys() | self._seeds.keys())

    def run(self, plan: StepPlan) -> StepResult:
        for source, target in plan.copies:
            self._cells[target] = list(self._cells[source])
        for sequence in (*plan.closed, *plan.dropped):
            self._tables.pop(sequence, None)
        for sequence in plan.closed:
            self._seeds.pop(sequence, None)
        for opened in plan.opened:
            assert opened.sequence not in self._seeds, "a sequence was opened twice"
            self._seeds[opened.sequence] = opened.sampling.seed
        assert len({chunk.sequence for chunk in plan.chunks}) == len(plan.chunks), "a sequence is in a step twice"
        sampled: list[Sampled] = []
        told: list[PromptOutputs] = []
        for chunk in plan.chunks:
            values = self._forward(chunk)
            told += examined(chunk, values)
            if chunk.sample:
                sampled += drawn(chunk, values, self._seeds[chunk.sequence])
        return StepResult(plan.step, sampled, [], examined=told)

    def _forward(self, chunk: Chunk) -> list[int]:
        """The cells of its tokens."""
        table = self._tables.setdefault(chunk.sequence, [])
        table.extend(chunk.blocks)
        assert chunk.tokens and chunk.position + len(chunk.tokens) <= len(table) * self._size, "tokens outside the table"
        for position, token in enumerate(chunk.tokens, chunk.position):
            before = [self._cells[table[p // self._size]][p % self._size] for p in range(position)]
            self._cells[table[position // self._size]][position % self._size] = cell(before, token)
        return [self._cells[table[p // self._size]][p % self._size] for p in range(chunk.position, chunk.position + len(chunk.tokens))]


class Toy:
    """A scheduler before a toy stage. Plans wait until `run`, results until `take`; every event is followed by a check."""

    layers = 1

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits)
        self.scheduler.speculator.drafter = lambda sequence: Foreseen(sequence, self.layers)
        self.stage = ToyStage(limits.blocks, limits.block_tokens)
        self.plans: deque[StepPlan] = deque()
        self.results: deque[StepResult] = deque()
        self.history: list[StepPlan] = []
        self.said: dict[tuple[str, int], list[int]] = {}
        self.ends: dict[tuple[RequestId, int], FinishReason] = {}
        self.scores: dict[str, list[Score]] = {}
        self.embeddings: dict[RequestId, bytes] = {}
        self.chunks: list[TokenChunk] = []
        self.now = 0.0

    def add(self, request: Request) -> None:
        self.scheduler.add(request, now=self.now)
        for choice in range(request.n):
            self.said[request.id, choice] = []
        self.scores[request.id], self.embeddings[request.id] = [], b""
        self.scheduler.check()

    def cancel(self, request: str, choice: int | None = None) -> None:
        self.scheduler.cancel(RequestId(request), choice)
        self.scheduler.check()

    def send(self) -> StepPlan | None:
        """Schedules a step where the pipe has room, and carries it over the wire."""
        if self.scheduler.in_flight > self.limits.depth:
            return None
        plan = self.scheduler.schedule(self.now)
        self.scheduler.check()
        if plan is None:
            return None
        assert plan.rows <= self.limits.step_tokens, "a step over its budget"
        self.history.append(plan)
        self.plans.append(messages.decode_plan(messages.raw(plan)))
        return plan

    def fill(self) -> None:
        """Sends steps until nothing can run or the pipe is full, as the driver does after every event."""
        while self.send() is not None:
            pass

    def run(self) -> None:
        if self.plans:
            self.results.append(self.stage.run(self.plans.popleft()))

    def take(self) -> list[TokenChunk]:
        if not self.results:
            return []
        chunks = self.scheduler.apply(self.results.popleft())
        self.scheduler.check()
        for chunk in chunks:
            self._note(chunk)
        return chunks

    def _note(self, chunk: TokenChunk) -> None:
        key = (chunk.request, chunk.choice)
        assert key not in self.ends, "a token after the end"
        self.chunks.append(chunk)
        if chunk.scores or chunk.embedding:
            assert (chunk.choice, chunk.token, chunk.finish, self.said[key]) == (0, None, None, []), "a score after a token, or with it"
            assert not (chunk.embedding and self.embeddings[chunk.request]), "a second embedding"
            self.scores[chunk.request] += chunk.scores
            self.embeddings[chunk.request] += chunk.embedding
        if chunk.token is not None:
            self.said[key].append(chunk.token)
        if chunk.finish is not None:
            self.ends[key] = chunk.finish

    @property
    def idle(self) -> bool:
        """Nothing is on its way."""
        return not self.plans and not self.results

    def step(self) -> StepPlan | None:
        """One step there and back."""
        plan = self.send()
        self.run()
        self.take()
        return plan

    def drain(self, most: int = 5000) -> None:
        """Until nothing moves; then nothing may be left to move."""
        for _ in range(most):
            self.fill()
            if self.idle:
                assert (self.scheduler.running, self.scheduler.waiting) == (0, 0), "the scheduler is stuck"
                return
            self.run()
            self.take()
        raise AssertionError("the scheduler does not come to rest")


def request(
    name: str,
    prompt: Sequence[int],
    max_tokens: int = 4,
    *,
    n: int = 1,
    seed: int = 0,
    stops: frozenset[int] = frozenset(),
    priority: Priority = Priority.NORMAL,
    scores: int | None = None,
    embed: bool = False,
) -> Request:
    sampling = SamplingParams(seed=seed)
    return Request(RequestId(name), list(prompt), max_tokens, sampling, n, stops, priority, prompt_logprobs=scores, embed=embed)


def asking(i: int, prompt: Sequence[int], priority: Priority = Priority.NORMAL) -> Request:
    """The i-th of a mix of requests: some draw alone, some want scores with it or without, some an embedding."""
    kind, tokens = (i * 7 + len(prompt)) % 6, 1 + (i * 5 + len(prompt)) % 9
    wanted: dict[str, int | bool] = [{}, {}, {}, {"scores": 0}, {"scores": 2}, {"embed": True}][kind]
    drawn = 0 if kind == 5 or (kind == 4 and i % 2) else tokens
    stops = frozenset({STOP})
    return request(f"r{i}", prompt, drawn, n=1 + i % 3, seed=i % 2, stops=stops, priority=priority, **wanted)  # pyright: ignore[reportArgumentType]


def limits(
    blocks: int = 16,
    block_tokens: int = 4,
    *,
    context: int = 64,
    slots: int = 8,
    step_tokens: int = 16,
    queue: int = 64,
    depth: int = 1,
    ageing: int = 256,
    wait: float = 0.0,
    batching: Batching = ALONE,
    drafts: int = 0,
) -> Limits:
    return Limits(blocks, block_tokens, context, slots, step_tokens, queue, depth, ageing, wait, batching=batching, drafts=drafts)


def assert_right(toy: Toy, *requests: Request) -> None:
    """Every choice said exactly what it says alone."""
    for r in requests:
        for choice in range(r.n):
            assert (toy.said[r.id, choice], toy.ends.get((r.id, choice))) == expected(r, choice)


def serve(toy: Toy, *requests: Request) -> None:
    for r in requests:
        toy.add(r)
    toy.drain()
    assert_right(toy, *requests)
