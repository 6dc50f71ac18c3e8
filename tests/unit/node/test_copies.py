"""What becomes of requests counts for the copy that had them."""

from __future__ import annotations

from shoal.errors import InvalidRequest, ShoalError, StageLost
from shoal.node.model_engine import ModelEngine
from tests.support.city import City
from tests.support.town import LAYERS, play


async def two_copies(city: City) -> ModelEngine:
    for name in "ab":
        city.start(name)
    engine = city.serve("toy", LAYERS, replicas=2)
    await city.serving(engine)
    return engine


def chosen(city: City, engine: ModelEngine, name: str, error: ShoalError | None = None) -> int:
    """The copy that has an answer, which ends with an error or as it should."""
    request = city.request(name)
    runner = next(engine.copies.offered(name, [request]))
    if error is not None:
        runner.failed(request.id, error)
    engine.copies.ended(name)
    return runner.pipeline.id.replica


def told(city: City) -> list[str]:
    return [event.message for event in city.head.coordinator.recorder.events if "toy/" in event.message and " is ejected" in event.message]


def test_a_copy_whose_requests_fail_gets_no_more_for_a_while_and_that_is_told():
    async def scenario(city: City) -> None:
        engine = await two_copies(city)
        for number in range(60):
            chosen(city, engine, f"bad {number}", StageLost("it is gone"))
            if told(city):
                break
        (words,) = told(city)
        ejected = int(words.split()[0].removesuffix(":").rsplit("/", 1)[1])
        assert {chosen(city, engine, f"after {i}") for i in range(20)} == {3 - ejected}

    play(scenario, City)


def test_copies_with_the_highest_numbers_go_also_where_one_came_later():
    async def scenario(city: City) -> None:
        engine = await two_copies(city)
        engine.close_copy(1, "it is stopped")
        engine.scale(2)
        await city.serving(engine)
        assert engine.copies.kept == [1, 2]
        engine.scale(1)
        assert engine.copies.kept == [1]

    play(scenario, City)


def test_requests_that_were_wrong_do_not_count_against_a_copy():
    async def scenario(city: City) -> None:
        engine = await two_copies(city)
        for i in range(60):
            chosen(city, engine, f"wrong {i}", InvalidRequest("no such token"))
        assert not told(city)

    play(scenario, City)
