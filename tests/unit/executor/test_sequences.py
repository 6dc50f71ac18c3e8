"""What a stage knows of its sequences: plans that cannot be are refused as errors of the protocol."""

from __future__ import annotations

import pytest

from shoal.errors import RemoteProtocolError
from shoal.executor.sequences import Sequences
from shoal.scheduler.plan import Chunk, StepPlan


def test_a_token_outside_the_integers_is_a_protocol_error():
    """OverflowError escapes; StageService then dies without telling anyone."""
    with pytest.raises(RemoteProtocolError):
        Sequences(4).apply(StepPlan(0, [], [], [], [], [Chunk(1, 0, [2**40], [0], True)]))


def test_a_sequence_twice_in_a_step_is_a_protocol_error():
    chunk = Chunk(1, 0, [1], [0], True)
    with pytest.raises(RemoteProtocolError):
        Sequences(4).apply(StepPlan(0, [], [], [], [], [chunk, chunk]))
