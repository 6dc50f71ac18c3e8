"""One choice of one request, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.request import BlockId, Priority, Request, SequenceId
from shoal.scheduler.blocks import Digest


@dataclass(eq=False)
class Sequence:
    id: SequenceId
    request: Request
    choice: int
    parent: Sequence | None
    """The first choice of the same request, whose prompt the others fork from."""
    tokens: list[int]
    """Prompt and answer so far."""
    table: list[BlockId] = field(default_factory=list[BlockId])
    told: int = 0
    """Blocks of the table that the stages know."""
    scheduled: int = 0
    """Tokens sent into the pipeline."""
    computed: int = 0
    """Tokens whose keys and values are known to be there."""
    digests: list[Digest] = field(default_factory=list[Digest])
    """Names of the full blocks of `tokens`, as far as they were needed."""
    named: int = 0
    """Blocks of the table that can be found by their tokens."""
    awaiting: bool = False
    """A draw is on its way; the next token is not known."""
    opened: bool = False
    """The last stage has its sampling state."""
    life: int = 0
    """Grows with each preemption: what an earlier life computed is gone."""
    forking: bool = False
    """Its first block is a copy that no result has confirmed yet."""
    last_step: int = -1
    priority: Priority = field(init=False)
    """The class that it waits in: its request's, or a higher one after that was passed over for long."""
    set_back: int = 0
    """How often in a row it gave way to a higher class before it had its turn."""
    standing: Priority = field(init=False)
    """The class that it runs in: higher than the one that it waited in by one for each time that it was set back."""
    entered: tuple[int, int] = (0, 0)
    """When it was given its lane: the next step's number, and how many tokens it had."""
    cached: int = 0
    done: bool = False

    def __post_init__(self) -> None:
        self.priority = self.standing = self.request.priority

    @property
    def rank(self) -> tuple[Priority, SequenceId]:
        """Of those that run, who gives way: the highest one, so in a class the one that came last."""
        return self.standing, self.id

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def pending(self) -> int:
        """Known tokens that are not in the pipeline yet."""
        return len(self.tokens) - self.scheduled

    @property
    def decoding(self) -> bool:
        return self.pending == 1 and self.generated > 0
