"""`doctor` and `plan` answer on a small machine without importing the server."""

from __future__ import annotations

import subprocess
import sys


def test_doctor_and_plan_import_no_server() -> None:
    script = "import sys, shoal.cli.inspect; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"fastapi", "grpc", "uvicorn"} & set(done.stdout.split()) == set()
