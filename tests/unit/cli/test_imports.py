"""What a node's process loads before it joins: whatever it may do without costs each start."""

from __future__ import annotations

import subprocess
import sys

UNNEEDED = {
    "fastapi",
    "httpx2",
    "huggingface_hub",
    "jinja2",
    "llguidance",
    "pydantic",
    "spake2",
    "tokenizers",
    "typer",
    "uvicorn",
    "zeroconf",
}


def test_a_node_loads_nothing_that_it_may_do_without():
    code = "import sys, shoal.cli.join; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "grpc" in loaded and not UNNEEDED & set(loaded)
