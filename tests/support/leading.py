"""A head that does nothing but lead, as a process that can be stopped. As a command: KEEPER ADDRESS SECONDS [CREDENTIALS].

It says `leads TERM` or `follows` whenever that changes, and asks before it says anything, as a head does before it acts.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from shoal.leadership.candidate import Candidate
from shoal.leadership.clock import elapsed
from shoal.leadership.keepers import lease_of, parse
from shoal.security.credentials import Credentials


async def main(keeper: str, address: str, duration: float, credentials: Credentials | None) -> None:
    candidate = Candidate(lease_of(parse(keeper), "reef", duration, credentials), address)
    running = asyncio.create_task(_run(candidate))
    said = ""
    while not running.done():
        now = f"leads {candidate.term}" if candidate.leads(elapsed()) else "follows"
        if now != said:
            print(now, flush=True)
            said = now
        await asyncio.sleep(0.01)
    await running


async def _run(candidate: Candidate) -> None:
    while True:
        await candidate.lead()
        await candidate.until_lost()


if __name__ == "__main__":
    kept = Credentials.load(Path(sys.argv[4])) if len(sys.argv) > 4 else None
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), kept))
