"""One choice of one request, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.request import BlockId, Priority, Request, SequenceId
from shoal.scheduler.blocks import Digest
from shoal.scheduler.drafting.drafting import Drafting
from shoal.scheduler.pooling import Mean


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
    """Names of the full blocks of `tokens`, computed as needed."""
    named: int = 0
    """Blocks of the table that can be found by their tokens."""
    awaiting: bool = False
    """A sample is on its way; the next token is not known."""
    unsampled: bool = False
    """All known tokens are computed, but the sample that was due was delayed: the last token runs once more."""
    opened: bool = False
    """The last stage has its sampling state."""
    life: int = 0
    """Grows with each preemption: what was computed in an earlier life is gone."""
    forking: bool = False
    """Its first block is a copy that no result has confirmed yet."""
    asked: int = 0
    """Prompt tokens whose rows steps have queried, in flight or past; an answer counts in whichever life it was asked for."""
    examined: int = 0
    """Prompt tokens whose queries were answered."""
    mean: Mean = field(default_factory=Mean)
    """Of the final hidden states of those, if the request asks for it."""
    came: float = 0.0
    """When it was added, in seconds."""
    held: bool = False
    """It waits for others, to be admitted with them."""
    last_step: int = -1
    priority: Priority = field(init=False)
    """The class that it waits in: its request's, or a higher one after it was passed over for long."""
    set_back: int = 0
    """How often in a row it was preempted for a higher class before it had its turn."""
    standing: Priority = field(init=False)
    """The class that it runs in: one class above the one it waited in for each time it was set back."""
    entered: tuple[int, int] = (0, 0)
    """When it got its slot: the number of the next step, and how many tokens it had."""
    cached: int = 0
    drafting: Drafting | None = None
    """How its next tokens are guessed; None: they were not yet."""
    degraded: int = 0
    """Its tokens that were computed without an expert."""
    done: bool = False

    def __post_init__(self) -> None:
        self.priority = self.standing = self.request.priority

    @property
    def rank(self) -> tuple[Priority, SequenceId]:
        """Preemption order among running sequences: the highest rank goes first, so within a class the last to arrive."""
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
    def samples(self) -> bool:
        return self.request.samples > 0

    @property
    def answers(self) -> bool:
        """Whether this choice answers its request's queries about the prompt."""
        return self.choice == 0 and self.request.examined

    @property
    def asking(self) -> bool:
        """Whether rows of the prompt still have to be queried, and therefore computed."""
        return self.answers and self.asked < self.prompt_length

    @property
    def examining(self) -> bool:
        """Whether answers about rows of the prompt are still missing."""
        return self.answers and self.examined < self.prompt_length

    @property
    def findable(self) -> int:
        """Leading tokens that need not be computed if their blocks are found; the last token always has to be."""
        return min(self.examined if self.examining else len(self.tokens), len(self.tokens) - 1)

    @property
    def stretch(self) -> int:
        """Pending tokens that may share a chunk: rows that an earlier life queried never share one with rows still to be queried."""
        return self.asked - self.scheduled if self.asking and self.scheduled < self.asked else self.pending

    @property
    def complete(self) -> bool:
        """Whether it samples nothing and nothing else is to come."""
        return not self.samples and (not self.examining if self.answers else self.computed == len(self.tokens))

    @property
    def scoring(self) -> bool:
        """Whether the next rows are to be scored."""
        return self.asking and self.scheduled >= self.asked and self.request.prompt_logprobs is not None

    @property
    def active(self) -> bool:
        """Whether it is a stream that waits for its next token: it has one, or its sample is on its way or due."""
        return self.generated > 0 or self.awaiting or self.unsampled

    @property
    def decoding(self) -> bool:
        return self.unsampled or (self.pending == 1 and self.generated > 0)
