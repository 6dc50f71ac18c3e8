from __future__ import annotations

from typing import Any

import pytest

from shoal.config import HeadSettings, MoreNodes, ScalingSettings
from shoal.errors import ConfigError
from shoal.settings import composed, from_environment, settings_of


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"replicas_min": 3, "replicas_max": 2}, "--replicas-min 3 is more than --replicas-max 2"),
        ({"replicas_max": 0}, "--replicas-max must be at least 1"),
        ({"queue_target": 0}, "--queue-target must be at least 0.1"),
        ({"slots_target": 1.2}, "--slots-target must be at least 0.05 and at most 1"),
        ({"scale_tolerance": float("nan")}, "--scale-tolerance must be"),
        ({"more_nodes": "aws"}, "--more-nodes is one of none, webhook, ray, kubernetes"),
        ({"more_nodes": "webhook"}, "belong together"),
        ({"webhook": "https://a/b"}, "belong together"),
        ({"webhook_secret_file": "x"}, "--webhook-secret-file is of no use without --webhook"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        ScalingSettings(**given)


@pytest.mark.parametrize("url", ["https://a.example/hook?x=1", "http://127.0.0.1:9/", "https://[fd00::5]:8443/a"])
def test_where_webhooks_can_go(url: str) -> None:
    assert ScalingSettings(more_nodes=MoreNodes.WEBHOOK, webhook=url).webhook == url


@pytest.mark.parametrize(
    "url",
    ["a.example/hook", "ftp://a/b", "http://", "http://a:0/", "http://a:x/", "http://[::1", "http://a/#part", "http://a b/", "http://a/\n"],
)
def test_where_they_cannot(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--webhook.*write https://HOST/PATH") as raised:
        ScalingSettings(more_nodes=MoreNodes.WEBHOOK, webhook=url)
    assert "hook" not in str(raised.value).replace("--webhook", "").replace("webhooks", "")


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="takes no password") as raised:
        ScalingSettings(more_nodes=MoreNodes.WEBHOOK, webhook="https://me:hunter2@a/b")
    assert "hunter2" not in str(raised.value)


def test_they_come_from_the_environment_as_all_settings_do() -> None:
    found = from_environment(ScalingSettings, {"replicas_max": 4}, {"SHOAL_REPLICAS_MIN": "2", "SHOAL_FORECAST": "yes"})
    assert (found.replicas_min, found.replicas_max, found.forecast) == (2, 4, True)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"replicas": 4, "replicas_max": 3}, "--replicas 4 is not within --replicas-min 1 and --replicas-max 3"),
        ({"replicas": 1, "replicas_min": 2, "replicas_max": 3}, "--replicas 1 is not within"),
        ({"forecast": True}, "--forecast is for models that are scaled: give --replicas-max, or --replicas-min 0, too"),
        ({"more_nodes": "ray"}, "--more-nodes is for models that are scaled"),
        ({"replicas_max": 2, "on_demand": True, "idle": 9.0}, "--idle and --replicas-max exclude each other"),
        ({"replicas_max": 2, "more_nodes": "kubernetes"}, "--more-nodes kubernetes and --stateful-set NAME belong together"),
        ({"replicas_max": 2, "more_nodes": "kubernetes", "stateful_set": "A b"}, "is no name of an object"),
    ],
)
def test_what_a_head_cannot_do_with_them_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        composed(HeadSettings, given)


@pytest.mark.parametrize(
    ("given", "on", "first"),
    [
        ({}, False, 1),
        ({"replicas": 4}, False, 4),
        ({"replicas_max": 3}, True, 1),
        ({"replicas_min": 2, "replicas_max": 3}, True, 2),
        ({"replicas_min": 2, "replicas_max": 2}, True, 2),
        ({"replicas_min": 0}, True, 1),
        ({"replicas": 3, "replicas_max": 3}, True, 3),
    ],
)
def test_bounds_that_are_not_the_defaults_have_models_scaled(given: dict[str, Any], on: bool, first: int) -> None:
    settings = composed(HeadSettings, given)
    assert (settings.scaling.on, settings.first_replicas) == (on, first)


def test_every_setting_is_explained() -> None:
    assert all(setting.help.endswith(".") for setting in settings_of(ScalingSettings))
