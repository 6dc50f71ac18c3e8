"""The process that compiles a node's grammars and makes masks: `python -m shoal.node.grammar_worker PATH GROWTH`.

The memory that a grammar needs cannot be known beforehand, and llguidance does not report it. So this process watches its own
size. If it grows more than GROWTH bytes beyond its size with the tokenizer, it forgets compiled grammars, then ends the
sequences that made it grow most. If no remaining sequence caused the growth, the process exits, and the sequences go on in
another one. It also ends with the process that started it, when its input ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import BinaryIO

import msgspec
import psutil
from llguidance import LLTokenizer

from shoal.executor.constraint import Constraint, GrammarFailed, Grammars
from shoal.models.weights import GgufWeights, open_weights
from shoal.node.grammar_pipe import GrammarUpdate, Mask, read, write
from shoal.text.tokenizer import Tokenizer

_TICK = 1.0  # seconds between checks for sequences that take too long


def vocabulary(path: Path) -> LLTokenizer:
    """A model's tokenizer in the form that grammars need. Raises CorruptModel, UnsupportedModel, UserError."""
    weights = open_weights(path)
    meta = weights.file.meta if isinstance(weights, GgufWeights) else None
    return Tokenizer.open(path, meta).for_grammars(weights.spec.vocabulary)


class _Sequence:
    def __init__(self, constraint: Constraint, at: int) -> None:
        self.constraint, self.at = constraint, at
        self.grown = 0
        """Bytes by which the process grew while it worked on this sequence."""


class Worker:
    """One thread reads requests, those of `Grammars` compute, and one writes the answers; none of them waits on another's pipe."""

    def __init__(self, path: Path, growth: int, out: BinaryIO) -> None:
        self._path, self._growth, self._out = path, growth, out
        self._grammars = Grammars(self._vocabulary)
        self._sequences: dict[int, _Sequence] = {}
        self._lock = Lock()
        self._found: SimpleQueue[tuple[int, _Sequence, int]] = SimpleQueue()
        self._process = psutil.Process()
        self._most: int | None = None
        self._size = 0

    def _vocabulary(self) -> LLTokenizer:
        made = vocabulary(self._path)
        _trim()
        self._size = self._process.memory_info().rss
        self._most = self._size + self._growth
        return made

    def serve(self, asked: BinaryIO) -> None:
        """Serves until the input ends."""
        Thread(target=self._tell_all, daemon=True).start()
        while (body := read(asked)) is not None:
            self._take(msgspec.msgpack.decode(body, type=GrammarUpdate))

    def _take(self, ask: GrammarUpdate) -> None:
        with self._lock:
            for sequence in ask.closed:
                self._sequences.pop(sequence, None)
            for sequence, grammar, tokens, width in ask.opened:
                made = self._sequences[sequence] = _Sequence(self._grammars.constrain(grammar, tokens, width), len(tokens))
                self._expect(sequence, made)
            known = [(sequence, self._sequences[sequence], token) for sequence, token in ask.sampled if sequence in self._sequences]
            self._grammars.advance([(each.constraint, token) for _, each, token in known])
            for sequence, each, _ in known:
                each.at += 1
                self._expect(sequence, each)

    def _expect(self, sequence: int, each: _Sequence) -> None:
        found = sequence, each, each.at
        each.constraint.then(lambda: self._found.put(found))

    def _tell_all(self) -> None:
        looked = monotonic()
        while True:
            with contextlib.suppress(Empty):
                sequence, each, at = self._found.get(timeout=_TICK)
                self._tell(sequence, each, at)
                self._weigh(each)
                del each  # this may be the last reference
            if monotonic() - looked > _TICK:
                looked = monotonic()
                with self._lock:
                    late = [(s, each, each.at) for s, each in self._sequences.items() if not each.constraint.known]
                for sequence, each, at in late:  # end those that take too long
                    self._tell(sequence, each, at)

    def _tell(self, sequence: int, each: _Sequence, at: int) -> None:
        try:
            if (allowed := each.constraint.allowed(0)) is not None:
                self._say(Mask(sequence, at, allowed.tokens.astype("<i4").tobytes(), allowed.but))
        except GrammarFailed as error:
            self._say(Mask(sequence, at, fault=str(error), ours=error.ours))
        except BaseException as error:  # noqa: BLE001 - it ends only this sequence; a panic of llguidance is not an Exception
            self._say(Mask(sequence, at, fault=str(error) or type(error).__name__))

    def _say(self, told: Mask) -> None:
        with contextlib.suppress(OSError):  # the asking process has gone, so the input ends too
            write(self._out, msgspec.msgpack.encode(told))

    def _weigh(self, each: _Sequence) -> None:
        size = self._process.memory_info().rss
        each.grown += max(size - self._size, 0)
        self._size = size
        if self._most is not None and size > self._most:
            self._shrink(self._most)

    def _shrink(self, most: int) -> None:
        self._grammars.forget()
        _trim()
        while (size := self._process.memory_info().rss) > most:
            with self._lock:
                worst = max(self._sequences, key=lambda s: self._sequences[s].grown, default=None)
                each = None if worst is None else self._sequences.pop(worst)
            if worst is None or each is None or each.grown < self._growth // 4:
                os._exit(0)  # none of these sequences explains the size: they go on in another process
            self._say(Mask(worst, each.at, fault="it needs too much memory; simplify it"))
            del each
            _trim()
        self._size = size


def _trim() -> None:
    """Returns freed memory to the system, if the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to every process; the parent decides
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write to the pipe
    Worker(Path(sys.argv[1]), int(sys.argv[2]), out).serve(sys.stdin.buffer)
    os._exit(0)  # whatever the threads are doing


if __name__ == "__main__":
    main()
