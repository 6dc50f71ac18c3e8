"""A node's grammars in a process of their own, so that neither their time nor their memory burdens the stage (see grammar_worker.py)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

import msgspec
import numpy as np
import psutil
import structlog

from shoal.errors import ShoalError
from shoal.executor.constraint import Allowed, GrammarFailed
from shoal.executor.cost import GRAMMAR_GROWTH
from shoal.node.grammar_pipe import GrammarUpdate, Mask, read, write

log = structlog.get_logger()

_STRIKES = 2  # times that the process ended while working on a sequence before the sequence counts as the cause


class RemoteConstraint:
    """One sequence's way through its grammar. If its process ends, it goes on in another one."""

    def __init__(self, id: int, grammar: str, generated: Sequence[int], width: int) -> None:
        self.id, self.grammar, self.tokens, self.width = id, grammar, list(generated), width
        self.strikes = 0
        self.life = -1  # of the process in which it is open
        self.failed: GrammarFailed | None = None
        self.next: Future[Allowed] = Future()

    def allowed(self, patience: float | None = None) -> Allowed | None:
        """What may come next; None if that is not known within `patience` seconds (None: wait for ever). Raises GrammarFailed."""
        if self.failed is not None:
            raise self.failed
        try:
            return self.next.result(patience)
        except TimeoutError:
            return None


class GrammarProcess:
    """Behaves as executor.constraint.Grammars does. path: called for the model's path when the first grammar comes.

    The stage's thread never waits on a pipe: one thread asks, and another listens.

    When the process ends, any sequence that it was working on may be the cause. These suspects are opened in the next process
    one after another, each when the one before has its answer, and new sequences after them. So if one of them ends the process
    again, it is identified, and the others do not end with it.
    """

    def __init__(self, path: Callable[[], Path], patience: float | None = 0.05, growth: int = GRAMMAR_GROWTH) -> None:
        self.patience = patience
        self._path, self._growth = path, growth
        self._ids = count()
        self._lock = Lock()
        self._live: weakref.WeakValueDictionary[int, RemoteConstraint] = weakref.WeakValueDictionary()
        self._gone: deque[int] = deque()
        self._suspects: deque[int] = deque()  # only the first one is open
        self._asks: SimpleQueue[tuple[int, GrammarUpdate] | None] = SimpleQueue()
        self._asking: Thread | None = None
        self._listening: Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._life = 0  # number of the process: what was asked of one that is gone is not asked of the next
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        process = self._process
        return None if process is None else process.pid

    @property
    def resident(self) -> int:
        """Bytes of memory that the process uses."""
        try:
            return 0 if (pid := self.pid) is None else int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0

    def constrain(self, grammar: str, generated: Sequence[int], width: int) -> RemoteConstraint:
        made = RemoteConstraint(next(self._ids), grammar, generated, width)
        weakref.finalize(made, self._gone.append, made.id)
        with self._lock:
            self._live[made.id] = made
            self._ask(GrammarUpdate(self._opened(made)))
        return made

    def advance(self, sampled: Sequence[tuple[RemoteConstraint, int]]) -> None:
        """Starts to work out what may come after the tokens that a step sampled."""
        if not sampled:
            return
        ask = GrammarUpdate([], [])
        with self._lock:
            for constraint, token in sampled:
                constraint.tokens.append(token)
                constraint.next = Future()
                if constraint.failed is None and constraint.life == self._life:
                    ask.sampled.append((constraint.id, token))
                elif constraint.failed is None:  # the process in which it was open has ended
                    ask.opened += self._opened(constraint)
            self._ask(ask)

    def close(self) -> None:
        with self._lock:
            self._closed, process, asking = True, self._process, self._asking
            if process is not None:
                process.kill()
        if asking is not None:
            self._asks.put(None)
            asking.join()
        if (listening := self._listening) is not None:  # it returns when the process has ended
            listening.join()

    def _opened(self, constraint: RemoteConstraint) -> list[tuple[int, str, list[int], int]]:
        """The message that opens it; nothing if its turn has not come yet. Call it with the lock held."""
        if self._suspects and self._suspects[0] != constraint.id:
            self._suspects.append(constraint.id)
            return []
        constraint.life = self._life
        return [(constraint.id, constraint.grammar, [*constraint.tokens], constraint.width)]

    def _next_suspect(self) -> None:
        """Opens the next suspect. Call it with the lock held."""
        while self._suspects and not self._closed:
            if (constraint := self._live.get(self._suspects[0])) is not None and constraint.failed is None:
                self._ask(GrammarUpdate(self._opened(constraint)))
                return
            self._suspects.popleft()

    def _ask(self, ask: GrammarUpdate) -> None:
        """Queues a message. Call it with the lock held."""
        if self._closed:
            raise GrammarFailed("the model is being unloaded", ours=True)
        if not ask.opened and not ask.sampled:
            return
        if self._asking is None:
            self._asking = Thread(target=self._ask_all, name="grammar-asks", daemon=True)
            self._asking.start()
        self._asks.put((self._life, ask))

    def _ask_all(self) -> None:
        while (item := self._asks.get()) is not None:
            life, ask = item
            try:
                process = self._started(life)
            except (OSError, ShoalError) as error:
                with self._lock:
                    self._suspects.clear()
                    for constraint in list(self._live.values()):
                        _fail(constraint, f"grammars cannot be worked on here ({error})", ours=True)
                continue
            if process is None:
                continue
            while self._gone:
                ask.closed.append(self._gone.popleft())
            assert process.stdin is not None
            with contextlib.suppress(OSError, ValueError):  # the process has ended and its input is closed: the listener handles that
                write(process.stdin, msgspec.msgpack.encode(ask))  # pyright: ignore[reportArgumentType]

    def _started(self, life: int) -> subprocess.Popen[bytes] | None:
        """The process of that life, started if needed; None if it has ended. Raises OSError, ShoalError."""
        with self._lock:
            if life != self._life:
                return None
            if self._process is None:
                if self._closed:
                    raise OSError("the model is being unloaded")
                command = [sys.executable, "-m", "shoal.node.grammar_worker", str(self._path()), str(self._growth)]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self._listening = Thread(target=self._listen, args=(self._process,), name="grammar-answers", daemon=True)
                self._listening.start()
            return self._process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        with process.stdout as out:
            while (body := read(out)) is not None:  # pyright: ignore[reportArgumentType]
                self._told(msgspec.msgpack.decode(body, type=Mask))
        status = process.wait()
        with contextlib.suppress(OSError):
            process.stdin.close()
        with self._lock:
            self._process = None
            self._again(status)

    def _told(self, told: Mask) -> None:
        with self._lock:
            constraint = self._live.get(told.sequence)
            if constraint is not None and told.fault:
                _fail(constraint, told.fault, told.ours)
            elif constraint is not None and told.at == len(constraint.tokens) and not constraint.next.done():
                constraint.strikes = 0
                constraint.next.set_result(Allowed(np.frombuffer(told.tokens, "<i4").astype(np.intp), told.but))
            if self._suspects and self._suspects[0] == told.sequence:
                self._suspects.popleft()
                self._next_suspect()

    def _again(self, status: int) -> None:
        """Handles the end of the process; call it with the lock held. The sequences that it worked on go on in another one,
        except those that may be the cause."""
        waiting = [constraint for constraint in list(self._live.values()) if not constraint.next.done()]
        ended, self._life = self._life, self._life + 1
        self._suspects.clear()
        if self._closed:
            for constraint in waiting:
                _fail(constraint, "the model is being unloaded", ours=True)
            return
        log.warning("the process of the grammars ended", status=status, sequences=len(waiting))
        for constraint in waiting:
            constraint.strikes += constraint.life == ended
            if constraint.strikes >= _STRIKES:
                _fail(constraint, "it cannot be worked out what may come next; simplify it")
            else:
                self._suspects.append(constraint.id)
        self._next_suspect()


def _fail(constraint: RemoteConstraint, why: str, ours: bool = False) -> None:
    constraint.failed = constraint.failed or GrammarFailed(why, ours)
    if not constraint.next.done():
        constraint.next.set_exception(constraint.failed)
