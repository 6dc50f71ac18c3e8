"""`shoal keys`: who may use the API, and how much."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.options import Json, flag, of_file
from shoal.config import ApiSettings
from shoal.errors import ConfigError
from shoal.request import Priority
from shoal.settings import from_environment

if TYPE_CHECKING:
    from shoal.gateway.auth.key import ApiKey, KeyRole
    from shoal.gateway.auth.key_store import KeyStore

app = typer.Typer(help="Make, list and revoke the API's keys.", invoke_without_command=True)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_CLASSES = {"urgent": Priority.URGENT, "normal": Priority.NORMAL, "flex": Priority.FLEX, "batch": Priority.BATCH}

Data = Annotated[str | None, flag("--data", "Folder of the server's keys, if the server was given --data.")]


def _store(data: str | None) -> KeyStore:
    from shoal.cli.relocation import move_in
    from shoal.gateway.auth.key_store import KeyStore

    move_in()
    return KeyStore(from_environment(ApiSettings, {"data": data}, file=of_file(ApiSettings)).data_folder)


def expiry(text: str, now: float) -> float | None:
    """'90d' or '2027-01-31' (00:00 UTC) → seconds since 1970; '' → None. Raises ConfigError."""
    if not text:
        return None
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return now + int(match[1]) * _UNITS[match[2]]
    try:
        when = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise ConfigError(f"--expires takes a lifetime like 12h or 90d, or a date like 2027-01-31, not '{text}'") from None
    if when <= now:
        raise ConfigError(f"--expires {text} is in the past")
    return when


def _priority(name: str) -> Priority:
    if name not in _CLASSES:
        raise ConfigError(f"--priority must be one of {', '.join(_CLASSES)}, not '{name}'")
    return _CLASSES[name]


def _role(name: str) -> KeyRole:
    from shoal.gateway.auth.key import KeyRole

    if name not in [*KeyRole]:
        raise ConfigError(f"--role must be user or operator, not '{name}'")
    return KeyRole(name)


@app.callback()
def default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_keys(as_json=False, data=None)


@app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="A name for the key, such as its user or purpose.")],
    rpm: Annotated[int, flag("--rpm", "Most requests per minute; 0: no limit.", min=0)] = 0,
    tokens: Annotated[int, flag("--tokens-per-minute", "Most tokens per minute, prompts and answers together; 0: no limit.", min=0)] = 0,
    concurrency: Annotated[int, flag("--concurrency", "Most requests at once; 0: no limit.", min=0)] = 0,
    expires: Annotated[str, flag("--expires", "Lifetime or expiry date: 12h, 90d, or 2027-01-31; empty: never expires.")] = "",
    priority: Annotated[str, flag("--priority", "Highest class that its requests may have: urgent, normal, flex or batch.")] = "urgent",
    role: Annotated[str, flag("--role", "user: asks the model and sees the cluster; operator: also manages it.")] = "user",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Create a key and show it; it is not shown again. Example: [bold]shoal keys create alice --rpm 60 --expires 90d[/bold]"""
    from shoal.cli.show import emit, line, line_out
    from shoal.gateway.auth.key import KeyLimits

    now = time()
    limits = KeyLimits(rpm, tokens, concurrency)
    store = _store(data)
    first = not store.all()
    key, token = store.create(name, now, limits, expiry(expires, now), _priority(priority), _role(role))
    if as_json:
        emit({**_row(key, now), "key": token})
        return
    line_out(token)
    line(f"This is {name}'s key. It is kept nowhere and not shown again; send it as 'Authorization: Bearer KEY'.")
    if first:
        line("From now on the API asks everybody for a key.")


@app.command("list")
def list_keys(data: Data = None, as_json: Json = False) -> None:
    """List the keys and their use so far."""
    from shoal.cli.show import Rows, emit, line, out

    now = time()
    keys = _store(data).all()
    if as_json:
        emit([_row(key, now) for key in keys])
    elif keys:
        out.print(Rows([_short_row(key, now) for key in keys]))
    else:
        line("there are no keys: the API is for this machine alone, which needs none; `shoal keys create NAME` makes one")


@app.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument(help="The key's name or id.")], data: Data = None) -> None:
    """Revoke a key; it stops working within a second. Example: [bold]shoal keys revoke alice[/bold]"""
    from shoal.cli.show import line

    key = _store(data).revoke(name, time())
    line(f"{key.name} ({key.id}) is revoked")


def _short_row(key: ApiKey, now: float) -> dict[str, Any]:
    """The row for a terminal."""
    own, limits = key.limits, list[str]()
    for most, what in ((own.requests, "/min"), (own.tokens, " tokens/min"), (own.concurrency, " at once")):
        if most:
            limits.append(f"{most}{what}")
    if key.priority is not Priority.URGENT:
        limits.append(key.priority.name.lower())
    if key.expires is not None:
        limits.append(f"until {_day(key.expires)}")
    return {
        "name": key.name,
        "id": key.id,
        "state": key.state(now),
        "role": key.role.value,
        "last used": _day(key.last_used),
        "requests": key.requests,
        "tokens": key.prompt_tokens + key.completion_tokens,
        "limits": "\n".join(limits) or "-",
    }


def _row(key: ApiKey, now: float) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state(now),
        "created": _time(key.created),
        "expires": _time(key.expires),
        "last_used": _time(key.last_used),
        "requests": key.requests,
        "prompt_tokens": key.prompt_tokens,
        "completion_tokens": key.completion_tokens,
        "rpm": key.limits.requests or None,
        "tokens_per_minute": key.limits.tokens or None,
        "concurrency": key.limits.concurrency or None,
        "priority": key.priority.name.lower(),
        "role": key.role.value,
    }


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _day(seconds: int | None) -> str:
    return (_time(seconds) or "-")[:10]
