"""Keys and values of 8 and 4 bits as a person has them: `shoal up --kv-type q8`, one node and two, one of which is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, cluster, served, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

STORY, TOKENS = "A story:", 60
CONTEXT = ("--context", "8192", "--kv-tokens", "8192")
LITTLE = "470MiB"
"""Room for the model and a pool of 2048 tokens of q8, the smallest for that context; not of bf16."""
LONG = "In the year 1969, " * 180


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node, of `up`."""
    with cluster(tmp_path_factory.mktemp("alone")) as made:
        made.up("--nodes", "1", "--model", "smollm2-135m", "--kv-type", "q8", "--memory", "1GiB")
        made.until_ready()
        yield made


def test_two_nodes_say_what_one_says_and_go_on_when_one_is_killed(alone: Cluster, tmp_path: Path) -> None:
    expected = alone.texts(STORY, TOKENS, n=2)
    with served(tmp_path, 2, "--model", "smollm2-135m", "--kv-type", "q8", "--heartbeat", "0.25") as two:
        assert two.texts(STORY, TOKENS, n=2) == expected
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(two.texts, STORY, TOKENS, n=2)
            until(lambda: two.metric("sequences_running") == 2)
            two.living[1].signal(signal.SIGKILL)
            assert asked.result(60) == expected
        two.until_idle()


def test_what_was_computed_is_found_again(alone: Cluster) -> None:
    """Blocks of a prompt that two requests share, and of the one that forks, are copied and kept with their scales."""
    prompt = "The sea was calm. " * 20
    first = alone.complete(prompt, 12).json()
    again = alone.complete(prompt, 12, n=3).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert [choice["text"] for choice in again["choices"]] == [first["choices"][0]["text"]] * 3


def plan(kv_type: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal", "plan", "smollm2-135m", "--node", LITTLE, "--kv-type", kv_type, *CONTEXT, "--json"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def test_a_long_prompt_fits_where_bf16_says_how_much_is_missing(tmp_path: Path) -> None:
    flags = ("--nodes", "1", "--model", "smollm2-135m", "--memory", LITTLE, *CONTEXT)
    fits, short = plan("q8"), plan("bf16")
    assert fits.returncode == 0, fits.stderr
    (tmp_path / "q8").mkdir()
    with cluster(tmp_path / "q8") as made:
        made.up("--kv-type", "q8", *flags)
        made.until_ready()
        answer = made.complete(LONG, 2)
        assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] > 1500
    assert short.returncode == 1 and "MiB missing" in short.stderr and "--kv-type" in short.stderr
    (tmp_path / "bf16").mkdir()
    with cluster(tmp_path / "bf16") as made:
        made.up("--kv-type", "bf16", *flags).until_said("MiB missing")
