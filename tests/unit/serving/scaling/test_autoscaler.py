"""What the autoscaler says and does in single cases."""

from __future__ import annotations

import pytest

from shoal.observed.fleet_plan import AskForNodes, StartReplica, StopReplica
from shoal.pipeline_id import PipelineId
from shoal.serving.scaling.autoscaler import Autoscaler
from shoal.serving.scaling.expected_traffic import ExpectedTraffic
from shoal.serving.scaling.load import ModelLoad, ReplicaLoad, ReplicaPhase
from shoal.serving.scaling.room import ReplicaPlace, places_for
from tests.support.scaling import SLOTS, busy, only, planned, replicas, targets, with_load

MANY = places_for(100)
CALM = with_load(busy("a", replicas(2), 1.0), requests_per_second=0.7)


def test_content_load_changes_nothing_and_says_why() -> None:
    told = only(planned(Autoscaler(targets()), [CALM], MANY))
    assert (told.serving, told.wanted, told.planned, told.actions, told.holds) == (2, 2, 2, (), ())
    assert told.reason == "50% of the slots are taken, target 75%: 2 replicas will do"


def test_a_queue_asks_for_more_and_the_plan_has_the_nodes() -> None:
    told = only(
        planned(Autoscaler(targets()), [with_load(CALM, waiting=12)], lambda models, gone: [ReplicaPlace(("n1", "n2"))] * len(models))
    )
    assert (told.wanted, told.planned) == (3, 3)
    assert told.actions == (StartReplica(3, ("n1", "n2")),)
    assert told.reason == "6.0 requests wait per replica, target 4: the work of 3.0 replicas, and there are 2"
    assert [(s.name, s.figure, s.target, s.replicas) for s in told.signals if s.name == "queue"] == [("queue", 6.0, 4.0, 3.0)]


def test_a_load_for_which_there_may_be_no_more_is_not_said_to_be_content() -> None:
    told = only(planned(Autoscaler(targets(replicas_max=2)), [with_load(CALM, waiting=12)], MANY))
    assert (told.planned, told.actions) == (2, ())
    assert told.reason == "6.0 requests wait per replica, target 4: the work of 3.0 replicas, and there are 2"
    assert [hold.words for hold in told.holds] == ["the load asks for 3, --replicas-max is 2"]


@pytest.mark.parametrize(
    ("seconds", "waiting", "utilisation", "wanted"),
    [(3.0, 0, 0.5, 3), (3.0, 0, 0.1, 2), (3.0, 1, 0.1, 3), (9.0, 0, 0.5, 3), (1.5, 0, 0.4, 2), (0.5, 0, 0.4, 2)],
)
def test_the_first_token_counts_where_there_is_load(seconds: float, waiting: int, utilisation: float, wanted: int) -> None:
    load = with_load(CALM, first_token_p95=seconds, waiting=waiting, utilisation=utilisation)
    assert only(planned(Autoscaler(targets(replicas_min=2)), [load], MANY)).wanted == wanted


def test_first_tokens_near_their_target_keep_what_is_there() -> None:
    slow = with_load(busy("a", replicas(3), 1.2), first_token_p95=1.2)
    assert only(planned(Autoscaler(targets()), [slow], MANY)).wanted == 3
    assert only(planned(Autoscaler(targets()), [with_load(slow, first_token_p95=0.9)], MANY)).wanted == 2


def test_tokens_per_second_count_beside_what_replicas_can_do() -> None:
    able = tuple(ReplicaLoad(i, slots=SLOTS, tokens_per_second=100.0) for i in (1, 2))
    load = with_load(CALM, replicas=able, tokens_per_second=190.0)
    told = only(planned(Autoscaler(targets()), [load], MANY))
    assert told.wanted == 3
    assert told.reason.startswith("95% of the tokens per second that the replicas can do, target 75%")
    one_unknown = (*able, ReplicaLoad(3, slots=SLOTS))
    told = only(planned(Autoscaler(targets()), [with_load(load, replicas=one_unknown, utilisation=0.6)], MANY))
    assert "tokens" not in [signal.name for signal in told.signals]


def test_what_is_being_loaded_counts_and_a_growing_queue_asks_for_no_more() -> None:
    told = only(planned(Autoscaler(targets()), [with_load(CALM, replicas=replicas(1, 1), waiting=100)], MANY))
    assert (told.serving, told.loading, told.wanted, told.actions) == (1, 1, 2, ())


def test_what_arrives_asks_for_all_that_it_needs_at_once() -> None:
    told = only(planned(Autoscaler(targets()), [with_load(CALM, requests_per_second=3.0, slot_seconds=10.0)], MANY))
    assert told.wanted == 5  # 3 × 10 / (8 × 0.75)
    assert told.reason.startswith("3.00 requests per second arrive, one replica serves 0.60")


def test_load_has_to_last_and_the_plan_says_that_it_waits() -> None:
    scaler = Autoscaler(targets())
    for at in (0.0, 10.0):
        scaler.observe(at, [with_load(CALM, waiting=12)])
    told = only(scaler.plan(10.0, MANY))
    assert (told.wanted, told.planned, [hold.kind for hold in told.holds]) == (3, 2, ["settling"])
    scaler.observe(15.0, [with_load(CALM, waiting=12)])
    assert only(scaler.plan(15.0, MANY)).planned == 3


def test_a_cooldown_says_how_long_it_lasts() -> None:
    scaler = Autoscaler(targets(scale_up_cooldown=100.0))
    pressed = with_load(CALM, waiting=12)
    scaler.began(1000.0, planned(scaler, [pressed], MANY))
    scaler.observe(1060.0, [with_load(CALM, replicas=replicas(3), waiting=40)])
    told = only(scaler.plan(1060.0, MANY))
    assert (told.wanted, told.planned) == (5, 3)
    (hold,) = told.holds
    assert (hold.kind, hold.seconds) == ("cooldown", 40.0)
    assert "40 s more" in hold.words


def test_a_preview_starts_no_cooldown() -> None:
    scaler = Autoscaler(targets(scale_up_cooldown=100.0))
    first = planned(scaler, [with_load(CALM, waiting=12)], MANY)
    assert scaler.plan(1000.0, MANY) == first
    assert only(first).planned == 3


def test_the_bounds_are_said() -> None:
    told = only(planned(Autoscaler(targets(replicas_max=2)), [with_load(CALM, waiting=12)], MANY))
    assert (told.planned, told.holds[0].kind, told.holds[0].words) == (2, "maximum", "the load asks for 3, --replicas-max is 2")
    told = only(planned(Autoscaler(targets(replicas_min=2)), [busy("a", replicas(2), 0.1)], MANY))
    assert (told.planned, told.holds[0].kind) == (2, "minimum")


def test_a_minimum_needs_no_load_and_a_maximum_no_patience() -> None:
    scaler = Autoscaler(targets(replicas_min=3))
    scaler.observe(0.0, [busy("a", replicas(1), 0.0)])
    assert [action.replica for action in only(scaler.plan(0.0, MANY)).actions if isinstance(action, StartReplica)] == [2, 3]
    scaler = Autoscaler(targets(replicas_max=1))
    scaler.observe(0.0, [busy("a", replicas(3), 2.0)])
    assert only(scaler.plan(0.0, MANY)).planned == 1


# Which goes


def test_what_loads_goes_first_then_what_has_least_to_finish() -> None:
    held = (
        ReplicaLoad(1, ReplicaPhase.SERVING, SLOTS, 1),
        ReplicaLoad(2, ReplicaPhase.SERVING, SLOTS, 4),
        ReplicaLoad(3, ReplicaPhase.LOADING, SLOTS),
        ReplicaLoad(4, ReplicaPhase.STOPPING, SLOTS),
    )
    calm = ModelLoad("a", held, utilisation=0.1)
    told = only(planned(Autoscaler(targets()), [calm], MANY))
    assert [action.replica for action in told.actions if isinstance(action, StopReplica)] == [3, 1]
    assert told.planned == 1


def test_new_replicas_take_numbers_that_nobody_has() -> None:
    held = (ReplicaLoad(2, ReplicaPhase.SERVING, SLOTS), ReplicaLoad(3, ReplicaPhase.STOPPING, SLOTS))
    load = ModelLoad("a", held, waiting=16, utilisation=1.0)
    told = only(planned(Autoscaler(targets()), [load], MANY))
    assert told.actions == (StartReplica(1, ("node-1",)),)


# None at all


def test_the_last_replica_goes_only_after_rest_and_where_it_may() -> None:
    resting = ModelLoad("a", replicas(1), idle=1000.0)
    assert only(planned(Autoscaler(targets(replicas_min=0)), [resting], MANY)).planned == 0
    told = only(planned(Autoscaler(targets(replicas_min=0)), [with_load(resting, idle=59.0)], MANY))
    assert (told.planned, told.wanted) == (1, 1)
    assert only(planned(Autoscaler(targets(replicas_min=1)), [resting], MANY)).planned == 1


def test_a_request_wakes_a_model_at_once() -> None:
    scaler = Autoscaler(targets(replicas_min=0))
    scaler.observe(0.0, [ModelLoad("a", waiting=1)])
    assert only(scaler.plan(0.0, MANY)).actions == (StartReplica(1, ("node-1",)),)
    scaler.observe(1.0, [ModelLoad("a", idle=10.0)])
    told = only(scaler.plan(1.0, MANY))
    assert (told.planned, told.reason) == (0, "nobody asks for it")


# Room


def test_what_somebody_else_changed_begins_the_cooldown() -> None:
    scaler = Autoscaler(targets(scale_down_after=10.0, scale_down_cooldown=60.0))
    for moment in (0.0, 20.0):
        scaler.observe(moment, [busy("a", replicas(2), 0.0)])
    assert [action.replica for action in only(scaler.plan(20.0, places_for(9))).actions if isinstance(action, StopReplica)] == [2]
    scaler.changed(20.0, "a", added=True)
    scaler.changed(20.0, "nobody's", added=True)
    told = only(scaler.plan(20.0, places_for(9)))
    assert not told.actions and "cooldown" in [hold.kind for hold in told.holds]


def test_what_fits_nowhere_is_asked_for() -> None:
    def full(models: object, gone: object) -> list[ReplicaPlace]:
        return [ReplicaPlace(missing=5 << 28)] * len(models)  # pyright: ignore[reportArgumentType]

    load = with_load(CALM, requests_per_second=2.2, nodes_per_replica=2)
    told = only(planned(Autoscaler(targets()), [load], full))
    assert (told.wanted, told.planned, told.actions) == (4, 2, ())
    (hold,) = told.holds
    assert (hold.kind, hold.missing) == ("room", 5 << 28)
    assert hold.words == "no room for 2 replicas on the nodes that are there: 1.2 GiB missing for the next"
    told = only(planned(Autoscaler(targets(more_nodes="kubernetes", stateful_set="nodes")), [load], full))
    assert told.actions == (AskForNodes(4, 2, "kubernetes"),)


def test_a_higher_priority_takes_from_a_lower_one_and_starts_when_that_is_gone() -> None:
    low, high = busy("low", replicas(3), 2.5), busy("high", replicas(1), 1.6, priority=1)
    plan = {told.model: told for told in planned(Autoscaler(targets(more_nodes="ray")), [low, high], places_for(0)).models}
    assert plan["low"].planned == 1
    assert [a.why for a in plan["low"].actions if isinstance(a, StopReplica)] == ["its room is for high"] * 2
    assert plan["high"].actions == ()
    assert plan["high"].holds[-1].words == "2 replicas will start when others have stopped"
    assert [action for action in plan["low"].actions if isinstance(action, AskForNodes)] == [AskForNodes(1, 1, "ray")]


def test_nothing_is_taken_while_a_replica_that_stops_makes_room() -> None:
    held = (*replicas(3), ReplicaLoad(4, ReplicaPhase.STOPPING, SLOTS))
    low, high = with_load(busy("low", replicas(3), 2.0), replicas=held), busy("high", replicas(1), 1.2, priority=1)
    seen: list[object] = []

    def room(models: object, gone: object) -> list[ReplicaPlace]:
        seen.append(gone)
        return places_for(0)(models, gone)  # pyright: ignore[reportArgumentType]

    plan = {told.model: told for told in planned(Autoscaler(targets()), [low, high], room).models}
    assert plan["low"].actions == ()
    assert [PipelineId("low", 4)] in seen
    assert plan["high"].holds[-1].words == "1 replica will start when others have stopped"


def test_the_busier_of_two_models_gets_the_room() -> None:
    calm, hot = busy("calm", replicas(1), 1.6), busy("hot", replicas(1), 5.0)
    plan = {told.model: told.planned for told in planned(Autoscaler(targets()), [calm, hot], places_for(1)).models}
    assert plan == {"calm": 1, "hot": 2}


def test_a_resting_model_gives_its_last_replica_where_it_may() -> None:
    hot = busy("hot", replicas(1), 2.0)
    resting = ModelLoad("resting", replicas(1), idle=30.0)
    for least, left in ((0, 0), (1, 1)):
        scaler = Autoscaler(targets(), {"resting": targets(replicas_min=least, scale_idle=1e6)})
        plan = {told.model: told for told in planned(scaler, [hot, resting], places_for(0)).models}
        assert plan["resting"].planned == left


def test_nodes_that_could_not_help_are_not_asked_for() -> None:
    load = with_load(CALM, waiting=12, nodes_per_replica=0)
    told = only(planned(Autoscaler(targets(more_nodes="ray")), [load], lambda models, gone: [ReplicaPlace(missing=5)] * len(models)))
    assert told.actions == ()
    assert [hold.words for hold in told.holds] == ["no room for 1 replica on the nodes that are there: 5 B missing for the next"]


# Forecasts


def expects(rate: float, error: float = 0.1) -> dict[str, ExpectedTraffic]:
    return {"a": ExpectedTraffic(0.0, 600.0, (0.1, rate, rate), error, 0.2)}


def test_replicas_come_before_what_is_expected_by_the_time_that_it_takes_to_load_one() -> None:
    load = with_load(CALM, slot_seconds=10.0, load_seconds=200.0, requests_per_second=0.1)
    begun: list[float] = []
    scaler = Autoscaler(targets(forecast=True))
    for at in range(0, 900, 15):
        scaler.observe(float(at), [load], expects(3.0))
        if only(scaler.plan(float(at), MANY)).planned > 2:
            begun.append(float(at))
    rises = [at for at in range(900) if (expects(3.0)["a"].highest(at, at) or 0.0) * 10 / 6 > 2 * 1.1]
    assert rises[0] - 215 - 15 <= begun[0] <= rises[0] - 200 + 15


@pytest.mark.parametrize(("forecast", "error", "words"), [(True, 0.3, "not used: it missed by 0.30"), (False, 0.1, "")])
def test_a_forecast_that_is_no_better_than_a_naive_one_or_was_not_asked_for_counts_for_nothing(
    forecast: bool, error: float, words: str
) -> None:
    scaler = Autoscaler(targets(forecast=forecast))
    for at in range(0, 900, 15):
        scaler.observe(float(at), [with_load(CALM, slot_seconds=10.0)], expects(3.0, error))
    told = only(scaler.plan(885.0, MANY))
    assert told.planned == 2
    assert told.forecast.startswith(words)
    assert "forecast" not in [signal.name for signal in told.signals]


def test_a_forecast_wakes_a_model_only_for_more_than_a_request() -> None:
    for rate, planned_then in ((0.001, 0), (0.5, 1)):
        scaler = Autoscaler(targets(replicas_min=0, forecast=True, replicas_max=1))
        asleep = ModelLoad("a", slot_seconds=10.0, new_slots=SLOTS, idle=1e6)
        scaler.observe(900.0, [asleep], expects(rate))
        assert only(scaler.plan(900.0, MANY)).planned == planned_then


def test_it_says_that_there_is_no_forecast_yet() -> None:
    assert only(planned(Autoscaler(targets(forecast=True)), [CALM], MANY)).forecast == "there is no forecast yet"


def test_models_that_are_gone_are_forgotten() -> None:
    scaler = Autoscaler(targets())
    plan = planned(scaler, [CALM], MANY)
    scaler.observe(2000.0, [])
    assert scaler.plan(2000.0, MANY).models == ()
    scaler.began(2000.0, plan)
