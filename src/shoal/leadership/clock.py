"""The clock that leases are counted by: it never goes back, differs from machine to machine, and runs on while a machine sleeps."""

from __future__ import annotations

import sys
import time

if sys.platform == "linux":

    def elapsed() -> float:
        """Seconds since the machine started, those that it was suspended included, which time.monotonic leaves out."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

elif sys.platform == "darwin":

    def elapsed() -> float:
        """Seconds since the machine started, those that it slept included, which time.monotonic leaves out."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

else:
    elapsed = time.monotonic
