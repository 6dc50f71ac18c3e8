"""A process that ends while a thread still holds weights says nothing of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.kernel_parts import compiled

pytestmark = [compiled, pytest.mark.slow]

HOLDING = """
import threading
import numpy as np
from shoal.native import kernels
held = [kernels().pack("f32", "f32", np.zeros((16, 64), np.uint8), 16)]
def hold(kept):
    threading.Event().wait()
threading.Thread(target=hold, args=(held,), daemon=True).start()
"""


def test_nothing_is_said_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", HOLDING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
