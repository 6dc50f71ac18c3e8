"""What one step may hold: rows, and seconds that its chunks of prompts may make running streams wait."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.scheduler.cost import StepCost, StepLoad

_AIM = 0.4  # of the wait that is allowed: a step may take longer than predicted, and a stream may have to let one go by
_LEAST = 0.25  # of a step's time that prompts get at least, however many streams run
_ODD = 4  # of so many rows an odd step takes one


class StepBudget:
    def __init__(
        self, rows: int, prompt_rows: int, cost: StepCost | None, wait: float, streams: bool, flying: Iterable[StepLoad] = ()
    ) -> None:
        """prompt_rows: of those, most that belong to prompts. wait: most seconds, about, that a stream waits for prompts; 0: as long as it takes.

        streams: whether any run, and wait for this step. flying: what the steps in flight hold.
        """
        self.rows = rows
        self._prompts = prompt_rows
        self._cost = cost if wait else None
        self._wait, self._streams = wait, streams
        self._room = cost.room(flying) if cost is not None else StepLoad()
        self.load = StepLoad()
        """Of what was taken."""
        self._until: float | None = None  # seconds; known once the samples are in
        self._served = False  # a prompt has been asked for that may have all that is left

    def take(self, load: StepLoad, prompt: bool) -> None:
        """A chunk has joined the step. prompt: of a prompt."""
        self.load += load
        self.rows -= load.rows
        self._prompts -= load.rows if prompt else 0

    def prompt(self, position: int, wanted: int, scored: bool, part: float) -> int:
        """How many rows of a prompt the step takes, of those wanted: at most `part` of what is left. The first one that may have all gets one at least."""
        rows = min(wanted, int(min(self.rows, self._prompts) * part))
        if self._cost is None or rows <= 0:
            return max(rows, 0)
        now = self._cost.wait(self.load)
        first = part == 1 and not self._served
        self._served |= part == 1
        if self._until is None:
            self._until = self._allowed(now)
        fitting = self._cost.fitting(self.load, position, rows, scored, now + (self._until - now) * part, self._room)
        fitting = max(fitting, 1) if first else fitting
        if 0 < fitting < rows and self._cost.odd():
            # Smaller, or where that cannot be, twice as large, for which there is time: see _AIM.
            fitting = fitting // _ODD or min(2 * fitting, rows)
            self._prompts = fitting + 1  # whoever else is there gets a row
        return fitting

    def _allowed(self, alone: float) -> float:
        """Seconds that a stream may wait with this step's chunks, where it would wait `alone` without.

        Where no stream waits prompts may take the whole bound, or what makes reading the weights worth it: whoever comes waits for that.
        """
        if not self._streams:
            return max(self._wait, 2 * alone)
        aim = self._wait * _AIM
        return max(aim, alone + max(aim, alone) * _LEAST)
