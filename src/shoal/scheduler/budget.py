"""How much one step may hold: rows, and the seconds that its prefill chunks may delay running streams."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.scheduler.cost import StepCost, StepLoad

_AIM = 0.4  # share of the allowed wait: a step may take longer than predicted, and a stream may have to let one go by
_LEAST = 0.25  # least share of a step's time that prompts get, however many streams run
_ODD = 4  # an odd step takes one in this many rows


class StepBudget:
    def __init__(
        self, rows: int, prompt_rows: int, cost: StepCost | None, wait: float, streams: bool, flying: Iterable[StepLoad] = ()
    ) -> None:
        """prompt_rows: most of the rows that may belong to prompts. wait: most seconds, about, that a stream waits for prompts; 0: no
        limit. Where weights are streamed it waits for one pass over them, if that takes longer.

        streams: whether any streams run and wait for this step. flying: the loads of the steps in flight.
        """
        self.rows = rows
        self._prompts = prompt_rows
        self._cost = cost if wait else None
        self._wait, self._streams = max(wait, cost.one_pass(min(rows, prompt_rows)) / _AIM if cost is not None else 0.0), streams
        self._room = cost.room(flying) if cost is not None else StepLoad()
        self.load = StepLoad()
        """Load taken so far."""
        self._until: float | None = None  # seconds; set after the samples are in
        self._served = False  # whether a prompt that may have all that is left has asked

    def take(self, load: StepLoad, prompt: bool) -> None:
        """Adds a chunk to the step. prompt: whether the chunk belongs to a prompt."""
        self.load += load
        self.rows -= load.rows
        self._prompts -= load.rows if prompt else 0

    def prompt(self, position: int, wanted: int, scored: bool, part: float) -> int:
        """How many of a prompt's `wanted` rows the step takes, at most `part` of what is left.

        The first prompt that may take everything gets at least one row.
        """
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
            # Smaller; or, if that cannot be, twice as large, for which there is time: see _AIM.
            fitting = fitting // _ODD or min(2 * fitting, rows)
            self._prompts = fitting + 1  # others in this step still get one row
        return fitting

    def _allowed(self, alone: float) -> float:
        """Seconds that a stream may wait with this step's chunks; without them it would wait `alone`.

        If no stream waits, prompts may take the whole limit, or enough to be worth reading the weights: a stream that comes meanwhile
        waits that long.
        """
        if not self._streams:
            return max(self._wait, 2 * alone)
        aim = self._wait * _AIM
        return max(aim, alone + max(aim, alone) * _LEAST)
