"""Every exception that shoal raises on purpose, by whose fault it is.

    ShoalError
    ├── UserError                  the caller can fix it: HTTP 400, exit status 2
    │   ├── InvalidRequest         a field of a request (names the field)
    │   ├── NotAuthenticated       no API key, or an invalid one: HTTP 401
    │   ├── Forbidden              a web page that may not use the API: HTTP 403
    │   ├── NotAllowed             a key that may not do this: HTTP 403
    │   ├── RateLimited            a key has asked for more than it may: HTTP 429
    │   ├── TooLarge               a request over a size limit: HTTP 413, 414 or 431
    │   ├── WrongMediaType         a body declared as something other than JSON: HTTP 415
    │   ├── IdTaken                another request has the id that a client chose: HTTP 409
    │   ├── UnknownAnswer          no answer with that id, or no longer: HTTP 404
    │   ├── UnknownObject          no file or batch with that id: HTTP 404
    │   ├── Conflict               the object's state does not allow it: HTTP 409
    │   ├── NoRoom                 a file that is too large, or one too many: HTTP 413
    │   ├── KeptElsewhere          files or batches, which are at another machine: HTTP 501
    │   ├── Looped                 a request that this server sent on, and has again: HTTP 508
    │   ├── NotCached              a request that only a kept answer may answer, and there is none: HTTP 504
    │   ├── ConfigError            a setting or flag
    │   │   └── ContradictorySettings  valid one by one, and not together
    │   ├── PairingRefused         the head does not let a node in (says why)
    │   ├── UnknownModel           no such model here: HTTP 404
    │   ├── UnknownEndpoint        the servers that have a model do not have that endpoint: HTTP 404
    │   └── UnsupportedModel       an architecture, format or quantisation that shoal does not run
    ├── ModelError                 the files are at fault
    │   ├── CorruptModel           truncated, or not what it claims to be
    │   ├── NoRoomToPack           the disk has no room for the file that its weights are read from while it runs
    │   ├── DamagedPackedFile      that file is not what was written
    │   ├── WeightsUnreadable      could be opened, but a part of it cannot be read any more
    │   └── FetchError             could not be fetched
    │       ├── Unreachable        its origin does not answer
    │       └── HashMismatch       fetched, but its hash is wrong
    ├── CapacityError              the machines cannot do it now: HTTP 503
    │   ├── NotEnoughMemory        says how much is missing
    │   ├── QueueFull              too many requests wait: HTTP 429
    │   ├── UpstreamBusy           the servers that could answer take no more requests: HTTP 429
    │   ├── ShuttingDown           the server is about to end
    │   └── NotReady               no model is loaded yet, or no longer
    ├── ProtocolError              the conversation between two processes broke
    │   ├── LocalProtocolError     this side was about to break it: a bug here
    │   └── RemoteProtocolError    the other side did
    │       └── VersionMismatch
    ├── UpstreamFailed             another server, which should have answered, did not: HTTP 502
    └── ClusterError               a node failed to carry out an order
        ├── LeaseUnreachable       the keeper of the lease that heads lead by does not answer
        ├── NotPaired              the head wants a certificate that this machine does not have
        └── StageLost              the route through the nodes is broken
            └── StepFailed         a stage could not run a step

The gateway turns them into HTTP answers, the command line into one line and an exit status. Anything else that escapes is a bug.
"""

from __future__ import annotations

from shoal.sizes import human_bytes
from shoal.spelling import suggestion


class ShoalError(Exception):
    """Base of all errors that shoal raises on purpose."""


class UserError(ShoalError):
    """The caller can fix it."""


class InvalidRequest(UserError):
    """A request that cannot be served; `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NotAuthenticated(UserError):
    """The message is the same for unknown, revoked and expired keys, so that it tells nothing about which keys exist."""

    def __init__(self, given: bool) -> None:
        how = "send a key of this server as 'Authorization: Bearer KEY' or 'x-api-key: KEY'; `shoal keys create NAME` makes one"
        super().__init__(f"incorrect API key provided: {how}" if given else f"you did not provide an API key: {how}")


class Forbidden(UserError):
    def __init__(self, origin: str) -> None:
        super().__init__(f"pages of {origin[:200]} may not use this API, which asks for no key; allow them with --cors, or make a key")


class NotAllowed(UserError):
    """The caller is known and may not do this."""


class RateLimited(UserError):
    """what: requests or tokens. wait: seconds after which it is worth asking again."""

    def __init__(self, message: str, what: str, wait: float) -> None:
        super().__init__(f"{message}; try again in {max(wait, 0.1):.1f} s")
        self.what = what
        self.wait = wait


class TooLarge(UserError):
    """status: the HTTP status, which depends on the part that is too large."""

    def __init__(self, what: str, limit: int, unit: str = "bytes", status: int = 413) -> None:
        super().__init__(f"{what} has more than {limit} {unit}")
        self.limit = limit
        self.status = status


class WrongMediaType(UserError):
    def __init__(self, given: str) -> None:
        super().__init__(f"the body is '{given[:100]}'; send JSON, with 'Content-Type: application/json'")


class IdTaken(UserError):
    def __init__(self, id: str) -> None:
        super().__init__(f"a request {id} already exists; choose another id, or read its answer at /v1/streams/{id}")


class UnknownAnswer(UserError):
    def __init__(self, id: str) -> None:
        super().__init__(f"there is no answer {id}, or it is no longer kept; send the request again")


class UnknownObject(UserError):
    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"there is no {kind} '{id[:64]}'")
        self.kind = kind


class Conflict(UserError):
    """The object's state does not allow the operation; `param` names the object."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class NoRoom(UserError):
    """A file that is too large, or one too many; `param` names it."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class KeptElsewhere(UserError):
    """This server does not keep it, another one does."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"this is a gateway, which keeps no {what}: they are at the head, whose API is {where}")


class Looped(UserError):
    """A request that went from server to server came back."""


class NotCached(UserError):
    """The request says that only a kept answer may answer it, and there is none."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the request says 'Cache-Control: only-if-cached': {why}; leave that out, and it is computed")


class ConfigError(UserError):
    """An invalid setting."""


class ContradictorySettings(ConfigError):
    """Settings that are valid one by one, and not together."""


class PairingRefused(UserError):
    """A node is not let into the cluster. `reason` names the cause for programs; `wait` is in seconds, 0 if waiting does not help."""

    def __init__(self, message: str, reason: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.wait = wait


class UnknownModel(UserError):
    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"unknown model '{name}'{suggestion(name, known)}: known here are {', '.join(known) or 'none'}")
        self.name = name


class UnknownEndpoint(UserError):
    def __init__(self, path: str, model: str) -> None:
        super().__init__(f"the servers that have the model '{model}' have no endpoint {path}; use another one, or another model")


class UnsupportedModel(UserError):
    """A model that shoal cannot run; the message lists what it can."""


class ModelError(ShoalError):
    """A model's files are at fault."""


class CorruptModel(ModelError):
    """cut: the file is incomplete, so fetching it again may help. Otherwise it was published broken."""

    def __init__(self, path: object, what: str, cut: bool = False) -> None:
        super().__init__(
            f"{path}: {what}; {'fetch the file again' if cut else 'the file was published like this: look for another version of it'}"
        )
        self.path = path


class NoRoomToPack(ModelError):
    """The disk has no room for the packed file of a model that is larger than memory. needed: bytes; 0: more than are free."""

    def __init__(self, folder: object, needed: int, free: int) -> None:
        wanted = human_bytes(needed) if needed else "more"
        super().__init__(
            f"the disk is full: {folder} needs {wanted} for the weights as they are executed, {human_bytes(free)} are free; "
            "free some space, or name a folder on another disk with --packed-cache or SHOAL_PACKED_CACHE"
        )


class DamagedPackedFile(ModelError):
    """A file that shoal made of a model's weights is not what was written."""

    def __init__(self, path: object, what: str) -> None:
        super().__init__(f"{path}: {what}; delete the file, it is made again from the model")


class WeightsUnreadable(ModelError):
    """Weights that were to be read while the model runs: the disk fails, or the file was cut or changed. Nothing read of it may be used."""

    def __init__(self, path: object, what: str) -> None:
        super().__init__(f"{path}: {what}; check the disk; the file is made again")
        self.path = path


class FetchError(ModelError):
    """A model could not be fetched; the message says why and what to do."""


class Unreachable(FetchError):
    """A model's origin does not answer; a local copy may do instead."""


class HashMismatch(FetchError):
    def __init__(self, name: str, expected: str, actual: str) -> None:
        super().__init__(f"{name}: sha256 is {actual}, expected {expected}; the file was discarded")
        self.expected = expected
        self.actual = actual


class CapacityError(ShoalError):
    """The machines in the cluster cannot do it now."""


class NotEnoughMemory(CapacityError):
    def __init__(self, needed: int, available: int, what: str = "the model") -> None:
        missing = max(needed - available, 0)
        super().__init__(
            f"not enough memory for {what}: {human_bytes(needed)} needed, {human_bytes(available)} available on the nodes, "
            f"{human_bytes(missing)} missing; join more nodes, raise --memory, or choose a lower --precision, --kv-type or --context"
        )
        self.needed = needed
        self.available = available


class QueueFull(CapacityError):
    def __init__(self, waiting: int, limit: int, what: str = "requests") -> None:
        super().__init__(f"{waiting} {what} are already waiting (limit {limit}); try again later")
        self.limit = limit


class ShuttingDown(CapacityError):
    def __init__(self) -> None:
        super().__init__("the server is shutting down; ask another one, or try again when it is back")


class NotReady(CapacityError):
    """No model is loaded yet, or it is no longer loaded."""


class UpstreamBusy(CapacityError):
    """wait: seconds after which it is worth asking again."""

    def __init__(self, model: str, wait: float) -> None:
        super().__init__(f"the servers that have the model '{model}' are busy; try again in {max(wait, 0.1):.1f} s")
        self.wait = wait


class UpstreamFailed(ShoalError):
    """Another server, to which requests for a model go, did not answer as it should."""


class ProtocolError(ShoalError):
    """The conversation between two processes broke."""


class LocalProtocolError(ProtocolError):
    """This side was about to break the protocol."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol."""


class VersionMismatch(RemoteProtocolError):
    def __init__(self, theirs: object, ours: object) -> None:
        super().__init__(f"the peer speaks version {theirs}, this is {ours}; install the same shoal on every machine")
        self.theirs = theirs
        self.ours = ours


class ClusterError(ShoalError):
    """A node failed to carry out an order."""


class LeaseUnreachable(ClusterError):
    """keeper: what was asked, without secrets."""

    def __init__(self, keeper: str, why: str) -> None:
        super().__init__(f"{keeper} does not answer ({why})")
        self.keeper = keeper


class NotPaired(ClusterError):
    def __init__(self, address: str) -> None:
        super().__init__(f"the head at {address} needs its pairing code, which `shoal serve` shows there; give it once: --code CODE")


class StageLost(ClusterError):
    """A stage of the route is gone; requests that ran through it cannot go on."""


class StepFailed(StageLost):
    """A stage could not run a step. The fault may be the stage's or that of a request in the step."""

    def __init__(self, stage: int, message: str, step: int) -> None:
        super().__init__(f"stage {stage}: {message}")
        self.step = step
