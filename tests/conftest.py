"""What every test shares: one torch thread, logging as it is without settings, and the small trained model for those that need trained weights."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ["SHOAL_CONFIG"] = os.devnull  # not what whoever runs the tests has set
os.environ["SHOAL_HOME"] = tempfile.mkdtemp(prefix="shoal-test-")  # nor their keys and requests
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import structlog
from hypothesis import HealthCheck, settings

from shoal.cli.show import err
from shoal.models.sources import pull
from shoal.models.weights import GgufWeights

atexit.register(shutil.rmtree, os.environ["SHOAL_HOME"], ignore_errors=True)
settings.register_profile("shoal", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a slow machine fails no test
settings.load_profile("shoal")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two tests with one name, the processes that share the tests would run one."""
    twice = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"more than one test is called {', '.join(twice)}")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Where a test of this run has imported it; that takes seconds."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logging_of_its_own() -> Iterator[None]:
    """What one test configured, by the command line or the library, filters no other test's lines."""
    yield
    structlog.reset_defaults()
    err.log = None


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, from the cache that SHOAL_CACHE names; fetched where it is not there."""
    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_weights(smollm2: Path) -> GgufWeights:
    return GgufWeights(smollm2)
