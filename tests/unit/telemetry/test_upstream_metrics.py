"""Requests to other servers, as Prometheus reads them."""

from __future__ import annotations

from shoal.serving.balancing.inquiry import Ending
from shoal.telemetry.metrics import ENDINGS
from tests.support.metered import Metered

URL = "http://one/v1"


def test_requests_are_counted_by_upstream_and_ending() -> None:
    made = Metered()
    made.all.upstreams.state(URL, True)
    made.all.upstreams.request(URL, "served", 0.25, 2.0, 11, 3)
    made.all.upstreams.request(URL, "failed", 0.0, 1.0, 0, 0)
    text = made.text()
    assert f'shoal_upstream_ready{{upstream="{URL}"}} 1.0' in text
    for ending, count in (("served", 1), ("failed", 1), ("busy", 0), ("cancelled", 0)):
        assert f'shoal_upstream_requests_total{{ending="{ending}",upstream="{URL}"}} {count}.0' in text
    assert f'shoal_upstream_tokens_total{{kind="prompt",upstream="{URL}"}} 11.0' in text
    assert f'shoal_upstream_first_byte_seconds_count{{upstream="{URL}"}} 1.0' in text, "one that failed had none"
    assert f'shoal_upstream_answer_seconds_sum{{upstream="{URL}"}} 2.0' in text
    made.all.upstreams.state(URL, False)
    assert f'shoal_upstream_ready{{upstream="{URL}"}} 0.0' in made.text()


def test_endings_are_those_of_the_balancer() -> None:
    assert sorted(ENDINGS) == sorted(ending.value for ending in Ending)
