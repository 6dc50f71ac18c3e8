"""The messages between a worker and the head, as msgpack. Requests are identified by their ids, calls by a worker's own numbers.

A gateway is a worker on another machine: it gets files, keys and kept responses over this channel.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from shoal.config import ApiSettings
from shoal.errors import ShoalError
from shoal.facts import ModelFacts
from shoal.gateway.auth.key import ApiKey, KeyId, KeyLimits
from shoal.gateway.auth.limits import Allowance
from shoal.gateway.auth.use import Use
from shoal.observed.models import UpstreamView
from shoal.observed.trace_span import TraceSpan
from shoal.request import Request, RequestId, TokenChunk
from shoal.text.tokenizer_parts import TokenizerPart

Fact = str | int | float | bool | None


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A ShoalError: its class, message and facts."""

    kind: str
    message: str
    facts: dict[str, Fact] = {}

    @classmethod
    def of(cls, error: ShoalError) -> Failure:
        facts = {name: value for name, value in vars(error).items() if isinstance(value, str | int | float | bool | None)}
        return cls(type(error).__name__, str(error), facts)

    @property
    def error(self) -> ShoalError:
        """The error again; of the base class if this version does not know its own."""
        kind = _kinds(ShoalError).get(self.kind, ShoalError)
        error = kind.__new__(kind, self.message)  # what the constructor would compute is already in the message and the facts
        vars(error).update(self.facts)
        return error


def _kinds(base: type[ShoalError]) -> dict[str, type[ShoalError]]:
    found = {base.__name__: base}
    for kind in base.__subclasses__():
        found |= _kinds(kind)
    return found


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class Status(Message, frozen=True):
    """What may change while an engine is there: see Engine."""

    state: str
    longest: int
    why: Failure | None
    """Why there is no longest sequence."""


class ServedModel(Message, frozen=True):
    """An engine: see Engine."""

    name: str
    created: int
    vocabulary: int
    identity: str
    facts: ModelFacts
    resume: float
    model: str
    """The path of the file or folder, for the tokenizer; empty for a gateway, which fetches the tokenizer's parts."""
    template: str
    """The path of the chat template that replaces the model's own, if there is one."""
    status: Status


class Names(Message, frozen=True):
    """What may be asked for: see Engines."""

    names: list[str]
    aliases: dict[str, str]
    states: dict[str, str]
    state: str


class Attached(Message, frozen=True):
    """An answer that moves to a worker. All its earlier chunks follow; `said` of its tokens are already counted for its key."""

    model: str
    id: str
    note: bytes
    requests: list[Request]
    said: int


# From a worker


class Join(Message, frozen=True, tag=1):
    """The first message."""

    pid: int
    name: str = ""
    """Of a gateway."""


class Begin(Message, frozen=True, tag=2):
    call: int
    model: str
    answer: str
    note: bytes
    requests: list[Request]
    named: bool


class Find(Message, frozen=True, tag=3):
    call: int
    model: str
    answer: str
    owner: KeyId


class Scrape(Message, frozen=True, tag=4):
    call: int


class Cancel(Message, frozen=True, tag=5):
    """Nobody waits for a Begin any more, whether or not it was answered."""

    call: int
    answer: str


class EndChoice(Message, frozen=True, tag=6):
    request: RequestId
    choice: int


class Close(Message, frozen=True, tag=7):
    request: RequestId


class Forget(Message, frozen=True, tag=8):
    answer: str


class GiveBack(Message, frozen=True, tag=10):
    """Nobody waits for a Find any more, whether or not it was answered: the answer waits for another reader."""

    answer: str


class Enter(Message, frozen=True, tag=11):
    """A key's request begins: see Limiter."""

    call: int
    key: KeyId
    limits: KeyLimits


class Leave(Message, frozen=True, tag=12):
    """A request has ended, or is not waited for any more."""

    call: int
    """Of its Enter."""


class Spend(Message, frozen=True, tag=13):
    key: KeyId
    tokens: int


class Finished(Message, frozen=True, tag=14):
    """No request is unfinished any more, and none will come."""


class Operate(Message, frozen=True, tag=15):
    """See operations."""

    call: int
    interface: str
    name: str
    arguments: bytes


class Observed(Message, frozen=True, tag=9):
    """Something that the head counts for a model; '': for all of them together."""

    model: str
    what: str
    values: tuple[str | int | float | bool, ...]


class Traced(Message, frozen=True, tag=16):
    """Spans of a request, to be sent to where traces go."""

    spans: list[TraceSpan]


class UpstreamChanged(Message, frozen=True, tag=19):
    """An upstream takes requests, or does not any more, or has other models."""

    upstream: UpstreamView


class Want(Message, frozen=True, tag=17):
    """A request asks for a model that has no engine here, by its name or an alias; None: the default."""

    call: int
    model: str | None


class Unwanted(Message, frozen=True, tag=18):
    """Nobody waits for a Want any more."""

    call: int


class ListParts(Message, frozen=True, tag=40):
    """A gateway wants a model's tokenizer: see tokenizer_parts."""

    call: int
    model: str


class ReadPart(Message, frozen=True, tag=41):
    call: int
    model: str
    part: str
    offset: int


class Used(Message, frozen=True, tag=42):
    """What keys were used for at a gateway."""

    uses: dict[KeyId, Use]


Call = Begin | Find | Scrape | Enter | Operate | Want | ListParts | ReadPart
FromWorker = (
    Join
    | Call
    | Cancel
    | EndChoice
    | Close
    | Forget
    | GiveBack
    | Leave
    | Spend
    | Finished
    | Observed
    | Traced
    | Unwanted
    | Used
    | UpstreamChanged
)


# From the head


class AtHome(Message, frozen=True):
    """What a gateway needs of the head's machine."""

    api: str
    """Where the head's own API is, for people."""
    keys: list[ApiKey]
    """See KeysChanged."""


class Welcome(Message, frozen=True, tag=20):
    """The first message."""

    settings: ApiSettings
    engines: list[ServedModel]
    named: Names
    resumed: list[Attached]
    server: str
    """The head's id among servers."""
    home: AtHome | None = None
    """For a gateway."""


class KeysChanged(Message, frozen=True, tag=43):
    """All keys, for a gateway; without what they were used for."""

    keys: list[ApiKey]


class PartsListed(Message, frozen=True, tag=44):
    call: int
    parts: list[TokenizerPart]


class PartRead(Message, frozen=True, tag=45):
    call: int
    data: bytes


class Changed(Message, frozen=True, tag=21):
    model: str
    status: Status


class EngineAdded(Message, frozen=True, tag=33):
    engine: ServedModel
    resumed: list[Attached]


class EngineGone(Message, frozen=True, tag=34):
    """Its answers have ended."""

    model: str


class Renamed(Message, frozen=True, tag=35):
    """Names, aliases or states have changed."""

    named: Names


class Wanted(Message, frozen=True, tag=36):
    """The name of the model that was wanted, whose engine is there now."""

    call: int
    model: str


class Begun(Message, frozen=True, tag=22):
    call: int


class Found(Message, frozen=True, tag=23):
    call: int
    answer: Attached | None


class Scraped(Message, frozen=True, tag=24):
    call: int
    text: bytes


class Entered(Message, frozen=True, tag=30):
    call: int
    allowance: Allowance


class Finish(Message, frozen=True, tag=31):
    """No more requests may be accepted; the worker replies with Finished when the current ones have ended."""


class Operated(Message, frozen=True, tag=32):
    call: int
    answer: bytes


class Refused(Message, frozen=True, tag=25):
    call: int
    failure: Failure


class Said(Message, frozen=True, tag=26):
    """The tokens of all streams of a worker that arrived together."""

    chunks: list[TokenChunk]


class Over(Message, frozen=True, tag=27):
    """A stream ended."""

    request: RequestId


class Broke(Message, frozen=True, tag=28):
    """A stream ended with an error."""

    request: RequestId
    failure: Failure


class Taken(Message, frozen=True, tag=29):
    """Another reader has taken these streams."""

    requests: list[RequestId]


Reply = Begun | Found | Scraped | Entered | Operated | Wanted | PartsListed | PartRead | Refused
FromHead = Welcome | Changed | EngineAdded | EngineGone | Renamed | KeysChanged | Reply | Finish | Said | Over | Broke | Taken

Heard = TypeVar("Heard", FromWorker, FromHead)
