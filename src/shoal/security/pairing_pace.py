"""When the pairing port sends an answer: at a fixed time after the message that it answers, however long the computation took.

SPAKE2 here is plain Python and takes longer for some secrets than for others. An answer delayed to a time that does not depend
on the secret reveals nothing about it. Refusals and hang-ups are delayed in the same way.
"""

from __future__ import annotations

import math

ANSWER = 0.5  # seconds; the longest computation takes some 20 ms, on small boards 200


def left(came: float, now: float, answer: float = ANSWER) -> float:
    """Seconds to wait at `now` before answering what came at `came`. If that time has passed, on a busy machine: until its next
    multiple."""
    turns = max(math.ceil((now - came) / answer), 1)
    return max(came + turns * answer - now, 0.0)
