"""What `fleet plan` shows."""

from __future__ import annotations

import io
import json

import pytest

from shoal.cli.fleet_plan import fleet_plan_shown, fleet_plan_values
from shoal.cli.show import Screen
from shoal.observed.fleet_plan import AskForNodes, FleetPlan, LoadSignal, ModelPlan, ScalingHold, StartReplica, StopReplica

QUEUE = LoadSignal("queue", 6.0, 4.0, 3.0)
SLOTS = LoadSignal("slots", 0.925, 0.75, 2.4)
BIG = ModelPlan(
    "big",
    2,
    1,
    4,
    3,
    "6.0 requests wait per replica, target 4",
    (QUEUE, SLOTS, LoadSignal("first token", 2.345, 2.0, 2.3), LoadSignal("arrivals", 1.234, 0.6, 2.0)),
    (StartReplica(4, ("a", "b")), AskForNodes(1, 1, "webhook")),
    (
        ScalingHold("cooldown", "nothing is added for 40 s more: the cooldown after the last change", 40.0),
        ScalingHold("room", "no room", 0, 7),
    ),
    "used: it missed by 0.10",
)
SMALL = ModelPlan("small", 2, 0, 1, 1, "no load", (), (StopReplica(2, "has least to finish"),))


def shown(*models: ModelPlan) -> list[str]:
    screen = Screen(file=io.StringIO())
    screen.print(fleet_plan_shown(FleetPlan(0.0, models)), soft_wrap=True)
    text = screen.file.getvalue()  # pyright: ignore
    assert isinstance(text, str)
    return text.splitlines()


def test_each_model_has_a_row_with_every_signal_and_its_target() -> None:
    lines = shown(BIG, SMALL)
    assert lines[0].split("  ")[0] == "model"
    for cell in ("queue", "first token", "slots", "arrivals"):
        assert cell in lines[0]
    for cell in ("6.0 of 4", "92% of 75%", "2.35 of 2 s", "1.23 of 0.60/s"):
        assert cell in lines[1]
    assert lines[1].split()[:5] == ["big", "2", "1", "4", "3"]
    assert lines[2].split() == ["small", "2", "0", "1", "1", "-", "-", "-", "-"]


def test_it_says_what_it_would_do_why_and_what_holds_it() -> None:
    lines = shown(BIG, SMALL)
    assert lines[3:] == [
        "big: 6.0 requests wait per replica, target 4",
        "  would start replica 4 on a, b",
        "  would ask the webhook for 1 node, for 1 replica",
        "  held: nothing is added for 40 s more: the cooldown after the last change",
        "  held: no room",
        "  forecast used: it missed by 0.10",
        "small: no load",
        "  would stop replica 2: has least to finish",
    ]


def test_a_fleet_that_is_content_and_one_without_models() -> None:
    assert shown(ModelPlan("m", 1, 0, 1, 1, "1 replica will do"))[-1] == "  would change nothing"
    assert shown() == ["the fleet has no models"]


@pytest.mark.parametrize(("whom", "said"), [("ray", "Ray"), ("kubernetes", "Kubernetes"), ("webhook", "the webhook")])
def test_whom_it_would_ask(whom: str, said: str) -> None:
    asked = ModelPlan("m", 1, 0, 3, 1, "", (), (AskForNodes(4, 2, whom),))
    assert shown(asked)[-1] == f"  would ask {said} for 4 nodes, for 2 replicas"


def test_names_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in "\n".join(shown(ModelPlan("m\x1b[2J", 1, 0, 1, 1, "r\x1b")))


def test_for_a_script_it_is_json_with_numbers() -> None:
    values = json.loads(json.dumps(fleet_plan_values(FleetPlan(5.0, (BIG, SMALL)))))
    big, small = values["models"]
    assert (big["model"], big["serving"], big["loading"], big["wanted"], big["planned"]) == ("big", 2, 1, 4, 3)
    assert big["signals"][0] == {"name": "queue", "figure": 6.0, "target": 4.0, "replicas": 3.0}
    assert big["actions"] == [
        {"type": "start", "replica": 4, "nodes": ["a", "b"]},
        {"type": "ask", "nodes": 1, "replicas": 1, "whom": "webhook"},
    ]
    assert (big["holds"][0]["kind"], big["holds"][0]["seconds"], big["holds"][1]["missing_bytes"]) == ("cooldown", 40.0, 7)
    assert small["actions"] == [{"type": "stop", "replica": 2, "why": "has least to finish"}]
    assert small["holds"] == []
