"""When an answer of the pairing port leaves: at a fixed time after the message that it answers, whatever was computed for it.

SPAKE2 here is plain Python and takes longer for some secrets than for others. Held back to a time that the secret has no part in, an answer tells
nothing of that; nor do a refusal and a hang-up, which are held back alike.
"""

from __future__ import annotations

import math

ANSWER = 0.5  # seconds; the longest computation takes some 20 ms, on small boards 200


def left(came: float, now: float, answer: float = ANSWER) -> float:
    """Seconds to wait at `now` with the answer to what came at `came`. Where its time is over, on a machine that is busy: until its next multiple."""
    turns = max(math.ceil((now - came) / answer), 1)
    return max(came + turns * answer - now, 0.0)
