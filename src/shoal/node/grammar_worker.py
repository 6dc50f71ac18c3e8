"""The process in which a node's grammars are compiled and masks made: `python -m shoal.node.grammar_worker PATH GROWTH`.

What a grammar may cost in memory nobody can tell before, and llguidance does not say. So this process watches its own size. Beyond its
size with the tokenizer and GROWTH bytes it forgets compiled grammars, then ends the sequences that made it grow most. Where it was none of
those that are left it goes, and they go on in another one. It ends with the process that started it: when its input ends.
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

_TICK = 1.0  # seconds between looks for what takes too long


def vocabulary(path: Path) -> LLTokenizer:
    """A model's tokenizer, as grammars need it. Raises CorruptModel, UnsupportedModel, UserError."""
    weights = open_weights(path)
    meta = weights.file.meta if isinstance(weights, GgufWeights) else None
    return Tokenizer.open(path, meta).for_grammars(weights.spec.vocabulary)


class _Sequence:
    def __init__(self, constraint: Constraint, at: int) -> None:
        self.constraint, self.at = constraint, at
        self.grown = 0
        """Bytes by which the process grew while it was worked on."""


class Worker:
    """One thread reads questions, those of `Grammars` compute, and one writes the answers; none waits on another's pipe."""

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
        """Until the input ends."""
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
                del each  # it may be the last to hold it
            if monotonic() - looked > _TICK:
                looked = monotonic()
                with self._lock:
                    late = [(s, each, each.at) for s, each in self._sequences.items() if not each.constraint.known]
                for sequence, each, at in late:  # what takes too long ends
                    self._tell(sequence, each, at)

    def _tell(self, sequence: int, each: _Sequence, at: int) -> None:
        try:
            if (allowed := each.constraint.allowed(0)) is not None:
                self._say(Mask(sequence, at, allowed.tokens.astype("<i4").tobytes(), allowed.but))
        except GrammarFailed as error:
            self._say(Mask(sequence, at, fault=str(error), ours=error.ours))
        except BaseException as error:  # noqa: BLE001 - it ends this sequence, and no other one; a panic of llguidance is no Exception
            self._say(Mask(sequence, at, fault=str(error) or type(error).__name__))

    def _say(self, told: Mask) -> None:
        with contextlib.suppress(OSError):  # whoever asked has gone: the input ends too
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
                os._exit(0)  # what is left belongs to none of those here: they go on in another process
            self._say(Mask(worst, each.at, fault="it needs too much memory; simplify it"))
            del each
            _trim()
        self._size = size


def _trim() -> None:
    """Gives freed memory back, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the one that started this one decides
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else gets in between
    Worker(Path(sys.argv[1]), int(sys.argv[2]), out).serve(sys.stdin.buffer)
    os._exit(0)  # whatever the threads are at


if __name__ == "__main__":
    main()
