"""Grammars in a process of their own: the same masks, bounded memory, and what becomes of sequences when it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shoal.executor.constraint import GrammarFailed, Grammars
from shoal.node.grammar_worker import vocabulary
from shoal.node.grammars import GrammarProcess, RemoteConstraint
from shoal.text import grammar
from tests.support.cluster import BOUND, gone, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

MIB = 1 << 20
SCHEMA = grammar.json_schema({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 5}}})
HOSTILE = [
    grammar.json_schema({"anyOf": [{"type": "string", "pattern": f"[a-z]*x{i}(foo|bar)*[0-9]{{50}}{n}"} for i in range(300)]})
    for n in range(20)
]


@pytest.fixture
def process(smollm2: Path) -> Iterator[GrammarProcess]:
    made = GrammarProcess(lambda: smollm2, patience=None)
    yield made
    pid = made.pid
    made.close()
    assert pid is None or not psutil.pid_exists(pid)


def allowed(constraint: RemoteConstraint) -> set[int]:
    found = constraint.allowed(BOUND)
    assert found is not None
    return set(range(constraint.width)) - set(found.tokens.tolist()) if found.but else set(found.tokens.tolist())


def test_masks_are_those_of_this_process(process: GrammarProcess, smollm2: Path):
    width = 49152
    here = Grammars(lambda: vocabulary(smollm2), patience=None)
    words = grammar.regex("([a-z]{2,9} [0-9]{1,3}; ){30}")
    ours, theirs = here.constrain(words, [], width), process.constrain(words, [], width)
    for _ in range(12):
        known = ours.allowed()
        assert known is not None
        right = set(range(width)) - set(known.tokens.tolist()) if known.but else set(known.tokens.tolist())
        assert allowed(theirs) == right
        token = sorted(right)[len(right) // 2]
        here.advance([(ours, token)])
        process.advance([(theirs, token)])
    here.close()


def test_sequences_go_on_where_the_process_is_killed(process: GrammarProcess):
    first, second = process.constrain(SCHEMA, [], 49152), process.constrain(SCHEMA, [], 49152)
    before = allowed(first), allowed(second)
    assert process.pid is not None
    family = [psutil.Process(process.pid)]
    os.kill(process.pid, signal.SIGKILL)
    gone(family)
    token = sorted(before[0])[0]
    process.advance([(first, token)])
    alone = process.constrain(SCHEMA, [token], 49152)
    assert allowed(first) == allowed(alone)
    assert allowed(second) == before[1]
    process.advance([(second, token)])
    assert allowed(second) == allowed(alone)


def kill_at_work(process: GrammarProcess) -> None:
    """As soon as there is a process, before it can have answered; until its end was noticed."""
    pid = until(lambda: process.pid)
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    until(lambda: process.pid != pid)


def test_what_kills_the_process_again_and_again_ends(process: GrammarProcess):
    suspect = process.constrain(SCHEMA, [], 49152)
    for _ in range(2):
        kill_at_work(process)
    with pytest.raises(GrammarFailed) as failed:
        suspect.allowed(BOUND)
    assert not failed.value.ours
    assert allowed(process.constrain(SCHEMA, [], 49152))


def test_those_beside_what_kills_the_process_again_and_again_go_on(process: GrammarProcess):
    known = process.constrain(SCHEMA, [], 49152)
    token = sorted(allowed(known))[0]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    suspect, beside = (process.constrain(SCHEMA, [], 49152) for _ in range(2))
    kill_at_work(process)
    came = process.constrain(SCHEMA, [], 49152)
    kill_at_work(process)
    with pytest.raises(GrammarFailed):
        suspect.allowed(BOUND)
    assert allowed(beside) == allowed(came) == allowed(known)
    process.advance([(each, token) for each in (known, beside, came)])
    assert allowed(beside) == allowed(came) == allowed(known)


def test_those_after_one_whose_client_has_left_are_opened(process: GrammarProcess):
    suspect, beside = process.constrain(SCHEMA, [], 49152), process.constrain(SCHEMA, [], 49152)
    kill_at_work(process)
    del suspect
    assert allowed(beside)


def test_a_bad_grammar_is_its_own_fault_and_a_missing_tokenizer_is_not(process: GrammarProcess, tmp_path: Path):
    with pytest.raises(GrammarFailed) as failed:
        process.constrain("not even JSON {", [], 49152).allowed(BOUND)
    assert not failed.value.ours
    nowhere = GrammarProcess(lambda: tmp_path, patience=None)
    with pytest.raises(GrammarFailed, match="cannot read the model's tokenizer") as failed:
        nowhere.constrain(SCHEMA, [], 49152).allowed(BOUND)
    assert failed.value.ours
    nowhere.close()


def test_memory_is_bounded_whatever_grammars_come(smollm2: Path):
    growth = 5 * MIB
    process = GrammarProcess(lambda: smollm2, patience=None, growth=growth)
    try:
        assert allowed(process.constrain(SCHEMA, [], 49152))
        base, most, why = process.resident, 0, list[str]()
        held: list[RemoteConstraint] = []
        for hostile in HOSTILE:
            held.append(process.constrain(hostile, [], 49152))
            try:
                for _ in range(6):
                    tokens = sorted(allowed(held[-1]))
                    process.advance([(held[-1], tokens[len(tokens) // 2])])
            except GrammarFailed as error:
                why.append(str(error))
            most = max(most, process.resident)
        why += [str(each.failed) for each in held if each.failed is not None]
        assert any("memory" in reason for reason in why), (base >> 20, most >> 20, why)
        assert most < base + growth + 80 * MIB  # what the one at hand took before it was weighed
        held.clear()
        assert allowed(process.constrain(SCHEMA, [], 49152))
        assert process.resident < base + growth + 8 * MIB
    finally:
        process.close()
