"""A short soak: streams go on while nodes come and go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.soak import soak


@pytest.mark.real
@pytest.mark.slow
def test_nothing_is_lost_or_wrong_while_nodes_come_and_go(tmp_path: Path, smollm2: Path):
    report, story = soak(tmp_path, 10, streams=4, seed=0, every=1.5, tokens=32)
    assert not report.failed and not report.wrong, f"{report}\n{report.failed}\n{report.wrong}\n{story}"
    assert report.streams >= 4 and report.killed + report.added >= 5, str(report)
