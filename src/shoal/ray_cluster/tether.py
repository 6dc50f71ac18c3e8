"""`python -m shoal.ray_cluster.tether WORDS…`: runs `shoal WORDS…` until the pipe that is its stdin ends, and then kills it.

So an actor that Ray kills, in whatever way, leaves nothing behind.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading


def _hold(pipe: int) -> None:
    while os.read(pipe, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_hold, args=(pipe,), daemon=True).start()
    runpy.run_module("shoal", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
