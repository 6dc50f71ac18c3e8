"""What files of one cluster each share; `made` is that cluster, and theirs. Likewise the browser of a file. A test that fails shows what
its clusters said."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.cluster import BOUND, Cluster

if TYPE_CHECKING:
    import openai
    from playwright.sync_api import Browser


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        clusters = {made: name for name, made in item.funcargs.items() if isinstance(made, Cluster)}
        report.sections += [(f"the cluster {name}", made.story()) for made, name in clusters.items()]
    return report


@pytest.fixture(scope="module")
def client(made: Cluster) -> Iterator[openai.OpenAI]:
    import openai

    with openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", timeout=BOUND, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.support.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def idle(made: Cluster) -> Iterator[None]:
    """Nothing of the test is left in the cluster."""
    yield
    made.until_idle()
