"""`batch`: a file of requests in, a file of results out, using a running cluster or one started for the purpose."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic, time

import httpx2
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shoal.cli.asking import base_url
from shoal.cli.batch_size import Work, chosen, fitted
from shoal.cli.cluster import fetched
from shoal.cli.loop import run as run_in_loop
from shoal.cli.served import local_settings, served
from shoal.cli.show import err
from shoal.cli.waiting import stop_signal, until
from shoal.config import EngineSettings, NodeSettings
from shoal.errors import ClusterError, ConfigError
from shoal.gateway.endpoints.batches.line import BatchItem, Invalid, Line, lines_of, parsed
from shoal.gateway.endpoints.batches.output import Output
from shoal.gateway.endpoints.batches.result import answered, refused
from shoal.gateway.endpoints.batches.retry_policy import RetryPolicy

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_ANSWER = 256  # tokens of an answer whose request does not limit them
_AT_ONCE = 16  # requests, at a server that is there already
_SHOWN = 5  # lines of each kind that are listed
_EVERY = 10.0  # seconds between progress lines


class SomeUnanswered(ClusterError):
    """All requests were asked, and some not answered."""


@dataclass
class Server:
    """Where requests are sent, and since when nothing has answered there."""

    url: str
    key: str
    patience: float
    """Seconds without any answer after which the server counts as gone."""
    silent: float | None = None

    def client(self, connections: int) -> httpx2.AsyncClient:
        headers = {"X-Priority": "batch", "Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        timeout = httpx2.Timeout(10.0, read=None)  # requests of the lowest class may wait for hours
        return httpx2.AsyncClient(base_url=self.url, headers=headers, limits=limits, timeout=timeout, trust_env=False)


def _lines(path: Path) -> Iterator[Line]:
    """Raises ConfigError."""
    try:
        with path.open("rb") as file:
            yield from parsed(lines_of(file), URLS)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def _named(lines: list[Invalid]) -> str:
    shown = "; ".join(f"line {line.line}: {line.message}" for line in lines[:_SHOWN])
    return shown + (f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")


def _check(path: Path) -> tuple[set[str], list[Invalid], Work]:
    """The requests' custom_ids, the invalid lines, and how much is asked. Raises ConfigError if a custom_id appears twice."""
    ids: set[str] = set()
    bad: list[Invalid] = []
    work = Work()
    for line in _lines(path):
        if isinstance(line, BatchItem):
            ids.add(line.custom_id)
            work.add(len(line.body), _longest_answer(line.body))
        else:
            bad.append(line)
    if doubled := [line for line in bad if line.code == "duplicate_custom_id"]:
        raise ConfigError(f"{path} has a custom_id more than once; nothing was run: {_named(doubled)}")
    if not ids and not bad:
        raise ConfigError(f"{path} has no requests")
    return ids, bad, work


def _longest_answer(body: bytes) -> int:
    """Tokens that a request asks for, of all its choices; what is wrong with it, the server says."""
    asked = json.loads(body)
    found = [asked[name] for name in _LIMITS if isinstance(asked.get(name), int)]
    choices = asked.get("n")
    return max(found[0] if found else _ANSWER, 0) * max(choices if isinstance(choices, int) else 1, 1)


def _open(source: Path, target: Path, ids: set[str], bad: list[Invalid]) -> Output:
    """The output, with the results of an earlier run. Raises ConfigError."""
    try:
        if target.exists() and target.samefile(source):
            raise ConfigError(f"{target} is the input; choose another file for the results")
        output = Output(target)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror or error}") from error
    if foreign := output.done.ids - ids:
        output.close()
        raise ConfigError(f"{target} holds results of other requests, like '{min(foreign)}'; choose another file")
    for line in bad:
        if not output.done.covers(line):
            output.put(refused(line, secrets.token_hex(12)))
    return output


async def _ask(http: httpx2.AsyncClient, server: Server, asked: BatchItem, rng: Random) -> httpx2.Response:
    """The answer, once there is one. Raises ClusterError if the server is gone for too long."""
    patience = RetryPolicy()
    while True:
        try:
            answer = await http.post(asked.url, content=asked.body)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"--url {server.url}: {error}") from error
        except httpx2.HTTPError as error:
            server.silent = monotonic() if server.silent is None else server.silent
            if monotonic() - server.silent >= server.patience:
                why = str(error) or type(error).__name__
                raise ClusterError(f"{server.url} does not answer: {why}; results so far are kept; run the command again") from error
            await asyncio.sleep(patience.unreachable(rng))
            continue
        server.silent = None
        if answer.status_code in (401, 403):
            raise ConfigError(f"{server.url} needs a valid API key; give it with --api-key")
        pause = patience.pause(answer.status_code, _code(answer), answer.headers.get("retry-after"), time(), rng)
        if pause is None:
            return answer
        await asyncio.sleep(pause)


def _code(answer: httpx2.Response) -> str | None:
    try:
        return answer.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None


class _Shown:
    """Progress on stderr: a bar on a terminal, otherwise a line from time to time."""

    def __init__(self, done: int, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._bar.add_task("answering", total=total, completed=done)
        self._done, self._total, self._last = done, total, monotonic()

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def one(self) -> None:
        self._done += 1
        self._bar.advance(self._task)
        if not err.is_terminal and monotonic() - self._last >= _EVERY:
            self._last = monotonic()
            err.print(f"{self._done} of {self._total}", highlight=False)


async def _work(source: Path, output: Output, server: Server, concurrency: int, total: int) -> None:
    """Sends all requests that have no result. Raises ClusterError, ConfigError, OSError."""
    slots, rng = asyncio.Semaphore(concurrency), Random()

    async def one(asked: BatchItem) -> None:
        answer = await _ask(http, server, asked, rng)
        id = secrets.token_hex(12)
        request_id = answer.headers.get("x-request-id", f"req_{id}")
        await output.append(answered(asked, id, answer.status_code, request_id, answer.content))
        shown.one()

    try:
        with _Shown(len(output.done.ids), total) as shown:
            async with server.client(concurrency) as http, asyncio.TaskGroup() as group:
                for line in _lines(source):
                    if isinstance(line, BatchItem) and not output.done.covers(line):
                        await slots.acquire()
                        group.create_task(one(line)).add_done_callback(lambda _: slots.release())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _tell(output: Output, source: Path, target: Path, bad: list[Invalid], before: int, seconds: float) -> None:
    """Raises SomeUnanswered if not every request was answered."""
    done, failed = output.done, output.done.failed + len(bad)
    now = len(done.ids) - before
    rate = f" in {seconds:.1f} s, {now / seconds:.1f} a second" if now and seconds > 0 else ""
    err.print(f"{done.completed} answered, {failed} not; {now} asked now{rate}", markup=False, highlight=False)
    if bad:
        err.print(f"{source} has {len(bad)} line(s) that are no requests: {_named(bad)}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise SomeUnanswered(f"{failed} of {done.completed + failed} requests were not answered; {target} says why")


async def _batch(
    engine: EngineSettings, node: NodeSettings, nodes: int, server: Server, source: Path, target: Path, concurrency: int
) -> None:
    """concurrency: 0: at a server that is there already a number that suits most, in a cluster of its own as many as are fastest."""
    stop = stop_signal()
    ids, bad, work = _check(source)
    output = _open(source, target, ids, bad)
    before, began = len(output.done.ids), monotonic()

    async def finished() -> bool:
        """False if the user stopped it."""
        if ids <= output.done.ids:
            return True
        if server.url:
            return await until(stop, _work(source, output, server, concurrency or _AT_ONCE, len(ids)))
        fits, size = engine, concurrency
        if not size:
            if (model := await fetched(engine.model, stop)) is None:
                return False
            left = len(ids - output.done.ids)
            size = min(await asyncio.to_thread(chosen, model, engine, node, nodes, work), left)
            fits = fitted(engine, work, size)
            err.print(f"{left} requests, {size} at once", highlight=False)
        async with served(local_settings(fits), node, nodes, stop) as there:
            if there is None:
                return False
            server.url = there[0]
            return await until(stop, _work(source, output, server, size, len(ids)))

    try:
        if not await finished():
            err.print(f"stopped; {target} keeps what was answered, and the same command goes on from there", markup=False, soft_wrap=True)
            raise KeyboardInterrupt
        output.close()
    except OSError as error:
        raise ClusterError(f"cannot write {target}: {error.strerror or error}; fix that, then run the command again") from error
    finally:
        output.abandon()
    _tell(output, source, target, bad, before, monotonic() - began)


def run(
    engine: EngineSettings,
    node: NodeSettings,
    nodes: int,
    url: str,
    key: str,
    patience: float,
    source: Path,
    target: Path,
    concurrency: int,
) -> None:
    run_in_loop(_batch(engine, node, nodes, Server(base_url(url), key, patience), source, target, concurrency))
