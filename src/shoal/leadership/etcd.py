"""The lease in etcd, over the JSON form of its API (v3): a key that goes with a lease of etcd's, and one beside it with the last term.

    shoal/lease/<cluster>   who has it; deleted when its lease of etcd's expires
    shoal/term/<cluster>    the last term

Both are written in one transaction, if nobody has written them since they were read.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from secrets import token_hex
from typing import Any, TypeVar

import httpx2 as httpx
import msgspec

from shoal.errors import ConfigError, LeaseUnreachable
from shoal.leadership.clock import elapsed
from shoal.leadership.etcd_url import EtcdUrl
from shoal.leadership.lease import DURATION, Grant, Holder
from shoal.leadership.record import Record

T = TypeVar("T")
_DENIED, _NOT_FOUND, _UNAUTHENTICATED = 7, 5, 16  # codes of gRPC
_NO_USER = ("user name is empty", "authentication failed")
_SHARE = 1 / 4  # of the duration, for an answer; all members are asked within it


class _EtcdError(Exception):
    """An error that etcd answers. code: gRPC's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _KeyValue(msgspec.Struct, frozen=True):
    """value: base64. mod_revision: of its last change."""

    value: str = ""
    mod_revision: str = "0"


class _Range(msgspec.Struct, frozen=True):
    kvs: list[_KeyValue] = []

    @property
    def first(self) -> _KeyValue | None:
        return self.kvs[0] if self.kvs else None


class _Response(msgspec.Struct, frozen=True):
    response_range: _Range = _Range()


class _Done(msgspec.Struct, frozen=True):
    """Of a transaction."""

    succeeded: bool = False
    responses: list[_Response] = []


class _Granted(msgspec.Struct, frozen=True):
    """A lease of etcd's. TTL: seconds; 0: it is over."""

    ID: str = ""
    TTL: str = "0"


class _Kept(msgspec.Struct, frozen=True):
    result: _Granted = _Granted()


class _LoggedIn(msgspec.Struct, frozen=True):
    token: str


class _Revoked(msgspec.Struct, frozen=True):
    pass


class _Refusal(msgspec.Struct, frozen=True):
    code: int
    message: str


class EtcdLease:
    def __init__(
        self,
        url: EtcdUrl,
        cluster: str,
        duration: float = DURATION,
        now: Callable[[], float] = elapsed,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Nothing is sent yet. transport: another than TCP. Raises ConfigError if a file that the URL names cannot be used."""
        self.duration = duration
        self._url, self._now = url, now
        self._lease, self._counter = _text(f"shoal/lease/{cluster}"), _text(f"shoal/term/{cluster}")
        timeout = duration * _SHARE / len(url.members)
        self._http = httpx.AsyncClient(verify=url.tls() or False, trust_env=False, timeout=timeout, transport=transport)
        self._members = list(url.members)
        self._token = ""
        self._owner = token_hex(16)
        self._id = ""
        """Of the lease of etcd's that the key goes with."""
        self._term = self._seen = 0

    def __repr__(self) -> str:
        return f"EtcdLease({self._url.shown})"

    async def acquire(self, address: str) -> Grant | None:
        record, term, revisions = await self._state()
        if record is not None and record.owner != self._owner:
            return None
        term = max(term, self._seen) + 1
        sent = self._now()
        given = await self._ask("lease/grant", {"TTL": math.ceil(self.duration)}, _Granted)
        value = msgspec.json.encode(Record(self._owner, address, term))
        put = [
            {"requestPut": {"key": self._lease, "value": _bytes(value), "lease": given.ID}},
            {"requestPut": {"key": self._counter, "value": _text(str(term))}},
        ]
        compare = [
            {"key": key, "target": "MOD", "result": "EQUAL", "modRevision": revision}
            for key, revision in zip((self._lease, self._counter), revisions, strict=True)
        ]
        if not (await self._ask("kv/txn", {"compare": compare, "success": put}, _Done)).succeeded:
            await self._revoke(given.ID)
            return None
        self._id, self._term, self._seen = given.ID, term, term
        return Grant(term, sent + min(float(given.TTL), self.duration))

    async def renew(self) -> Grant | None:
        id, term = self._id, self._term
        if not id:
            return None
        sent = self._now()
        kept = (await self._ask("lease/keepalive", {"ID": id}, _Kept)).result
        if int(kept.TTL) <= 0:
            return None
        record, _, _ = await self._state()  # somebody may have deleted the key, and another head made it anew
        if record is None or (record.owner, record.term) != (self._owner, term):
            return None
        return Grant(term, sent + min(float(kept.TTL), self.duration))

    async def release(self) -> None:
        id, self._id = self._id, ""
        if id:
            await self._revoke(id)

    async def holder(self) -> Holder | None:
        record, _, _ = await self._state()
        return Holder(record.address, record.term) if record is not None else None

    async def close(self) -> None:
        await self._http.aclose()

    async def _state(self) -> tuple[Record | None, int, tuple[str, str]]:
        """Who has the lease, the last term, and the revisions of both keys. Raises LeaseUnreachable, ConfigError."""
        reads = [{"requestRange": {"key": key}} for key in (self._lease, self._counter)]
        held, counted = (one.response_range.first for one in (await self._ask("kv/txn", {"success": reads}, _Done)).responses)
        try:
            record = msgspec.json.decode(base64.b64decode(held.value), type=Record) if held is not None else None
            term = int(base64.b64decode(counted.value)) if counted is not None else 0
        except (ValueError, msgspec.DecodeError):
            keys = " or ".join(base64.b64decode(key).decode() for key in (self._lease, self._counter))
            raise LeaseUnreachable(f"the lease in {self._url.shown}", f"{keys} holds something else; delete it") from None
        self._seen = max(self._seen, term)
        return record, term, (_revision(held), _revision(counted))

    async def _revoke(self, id: str) -> None:
        try:
            await self._ask("lease/revoke", {"ID": id}, _Revoked)
        except LeaseUnreachable as error:
            if not isinstance(error.__cause__, _EtcdError) or error.__cause__.code != _NOT_FOUND:  # it is over already
                raise

    async def _ask(self, method: str, body: dict[str, Any], kind: type[T]) -> T:
        """Raises LeaseUnreachable, ConfigError."""
        try:
            if self._url.user and not self._token:
                await self._log_in()
            try:
                return await self._of_any(method, body, kind)
            except _EtcdError as error:
                if error.code != _UNAUTHENTICATED or not self._url.user:
                    raise
                await self._log_in()  # tokens expire
                return await self._of_any(method, body, kind)
        except _EtcdError as error:
            if error.code in (_DENIED, _UNAUTHENTICATED) or any(words in str(error) for words in _NO_USER):
                raise ConfigError(
                    f"{self._url.shown} refuses this head ({error}); write etcd://USER:PASSWORD@HOST:PORT, and allow that user to read and "
                    "write keys that begin with shoal/"
                ) from None
            raise LeaseUnreachable(f"the lease in {self._url.shown}", str(error)) from error

    async def _log_in(self) -> None:
        self._token = ""
        account = {"name": self._url.user, "password": self._url.password}
        self._token = (await self._of_any("auth/authenticate", account, _LoggedIn)).token

    async def _of_any(self, method: str, body: dict[str, Any], kind: type[T]) -> T:
        """The answer of the first member that gives one. Raises _EtcdError, LeaseUnreachable."""
        trouble = ""
        for _ in range(len(self._members)):
            try:
                return await self._of(self._members[0], method, body, kind)
            except httpx.HTTPError as error:
                trouble = str(error) or type(error).__name__
                self._members.append(self._members.pop(0))
        raise LeaseUnreachable(f"the lease in {self._url.shown}", trouble)

    async def _of(self, member: str, method: str, body: dict[str, Any], kind: type[T]) -> T:
        """Raises _EtcdError, LeaseUnreachable, httpx.HTTPError."""
        headers = {"Authorization": self._token} if self._token else {}
        answer = await self._http.post(f"{member}/v3/{method}", json=body, headers=headers)
        try:
            if answer.status_code == 200:
                return msgspec.json.decode(answer.content, type=kind)
            refusal = msgspec.json.decode(answer.content, type=_Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError):
            why = f"what answers is not etcd 3.4 or newer: HTTP {answer.status_code}"
            raise LeaseUnreachable(f"the lease in {self._url.shown}", why) from None
        raise _EtcdError(refusal.code, refusal.message)


def _bytes(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(text: str) -> str:
    return _bytes(text.encode())


def _revision(stored: _KeyValue | None) -> str:
    """Of a key's last change; 0: it is not there."""
    return stored.mod_revision if stored is not None else "0"
