"""What the autoscaler of a head needs, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shoal.config import HeadSettings, ScalingSettings
from shoal.errors import ConfigError
from shoal.launch.scaling import checked_scaling
from shoal.serving.webhook import NodeWebhook
from tests.support.city import City
from tests.support.town import play

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def with_webhook(file: str) -> HeadSettings:
    return HeadSettings(
        scaling=ScalingSettings(replicas_max=2, more_nodes="webhook", webhook="http://127.0.0.1:9/x", webhook_secret_file=file)  # pyright: ignore[reportArgumentType]
    )


def test_each_head_of_a_process_has_whom_to_ask_by_a_secret_that_is_read_once(tmp_path: Path) -> None:
    async def scenario(city: City) -> None:
        file = tmp_path / "secret"
        file.write_text(SECRET)
        file.chmod(0o644)
        with capture_logs() as lines:
            sources = checked_scaling(with_webhook(str(file)))
            file.unlink()
            first, second = sources(city.head), sources(city.head)
        assert isinstance(first, NodeWebhook) and isinstance(second, NodeWebhook) and first is not second
        assert [line["event"] for line in lines] == ["other users can read the secret for webhooks; chmod 600 FILE"]

    play(scenario, City)


def test_what_cannot_work_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--webhook-secret-file .*none: No such file"):
        checked_scaling(with_webhook(str(tmp_path / "none")))


def test_a_head_that_asks_nobody_loads_nothing_for_it() -> None:
    code = "import sys, shoal.cli.cluster; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "shoal.node.scaler" in loaded
    assert not {"standardwebhooks", "shoal.serving.webhook", "shoal.node.kubernetes_pool", "shoal.node.ray_pool"} & {*loaded}
