"""Batches where several models are served: each line asks the one that it names, and a batch waits for all that it needs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from shoal.gateway.engines import ServedEngines
from tests.support.batches import Api, line, served
from tests.support.http import HI, eventually
from tests.support.several import Called, calleds
from tests.support.several import served as several


def asks(id: str, model: str | None = None) -> dict[str, Any]:
    return line(id, messages=HI, **({} if model is None else {"model": model}))


def three() -> ServedEngines:
    return several(Called("alpha"), Called("beta"), Called("gamma"))


async def said(api: Api, batch: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Who answered each request, and what."""
    bodies = {id: row["response"]["body"] for id, row in (await api.results(batch["output_file_id"])).items()}
    return {id: (body["model"], body["choices"][0]["message"]["content"]) for id, body in bodies.items()}


def run(data: Path, what: Any, engines: ServedEngines, **options: Any) -> None:
    async def go() -> None:
        async with served(engines, data, **options) as api:
            await what(api)

    asyncio.run(go())


def test_each_line_asks_its_own_model(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        batch = await api.ended(await api.begin([asks("a"), asks("b", "beta"), asks("c", "best"), asks("d", "gamma"), asks("e", "alpha")]))
        assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
        answered = {"a": "alpha", "b": "beta", "c": "beta", "d": "gamma", "e": "alpha"}
        assert await said(api, batch) == {id: (name, name) for id, name in answered.items()}

    run(tmp_path, go, three())


def test_a_batch_says_the_model_that_it_names(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        id = await api.begin([asks("b", "best"), asks("c", "beta")])
        assert (await api.ended(id))["model"] == "beta"
        assert (await api.ended(await api.begin([asks("a")])))["model"] == "alpha"

    run(tmp_path, go, three())


def test_a_line_for_an_unknown_model_is_a_result_and_the_others_are_answered(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        batch = await api.ended(await api.begin([asks("a", "delta"), asks("b", "beta")]))
        assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        (error,) = (await api.results(batch["error_file_id"])).values()
        assert (error["custom_id"], error["response"]["status_code"]) == ("a", 404)
        assert await said(api, batch) == {"b": ("beta", "beta")}

    run(tmp_path, go, three())


def test_a_batch_waits_until_all_its_models_are_served(tmp_path: Path) -> None:
    async def begin(api: Api) -> None:
        made.append(await api.begin([asks("a"), *(asks(f"b{i}", "beta") for i in range(3))]))
        await api.until(made[0], lambda batch: batch["status"] == "in_progress" and calleds(first)[1].streams)

    async def wait(api: Api) -> None:
        other = await api.begin([asks("z")])
        await api.ended(other)
        assert (await api.batch(made[0]))["status"] == "in_progress"
        alone.add(Called("beta"))
        batch = await api.ended(made[0])
        assert await said(api, batch) == {"a": ("alpha", "alpha"), **{f"b{i}": ("beta", "beta") for i in range(3)}}

    made: list[str] = []
    first = several(Called("alpha"), Called("beta", lambda request: [], hang=True), aliases={})
    alone = several(Called("alpha"), aliases={})
    run(tmp_path, begin, first)
    run(tmp_path, wait, alone)


def test_lines_without_a_model_are_for_the_default_of_when_the_batch_was_made(tmp_path: Path) -> None:
    async def begin(api: Api) -> None:
        made.append(await api.begin([asks("a"), asks("b", "alpha")]))

    async def go(api: Api) -> None:
        assert await said(api, await api.ended(made[0])) == {"a": ("beta", "beta"), "b": ("alpha", "alpha")}

    made: list[str] = []
    run(tmp_path, begin, several(Called("beta"), Called("alpha"), aliases={}), works=False)
    run(tmp_path, go, several(Called("alpha"), Called("beta"), aliases={}))


def test_a_batch_that_names_another_model_is_left_to_who_serves_it(tmp_path: Path) -> None:
    """The one that reads it has the lease of its own default alone."""

    async def go() -> None:
        one, both = several(Called("alpha"), aliases={}), several(Called("alpha"), Called("beta"), aliases={})
        async with served(both, tmp_path) as second:
            await second.ended(await second.begin([asks("x")]))  # it holds alpha's lease
            async with served(one, tmp_path) as first:
                batch = await first.ended(await first.begin([asks("a", "beta"), asks("b", "beta")]))
                assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
        assert calleds(one)[0].streams == []

        async with served(one, tmp_path) as first:
            await first.ended(await first.begin([asks("y")]))  # now the other holds it
            async with served(both, tmp_path) as second:
                id = await second.begin([asks("c", "beta")])
                await eventually(lambda: len(calleds(both)[1].streams) == 3)
                assert (await second.ended(id))["status"] == "completed"

    asyncio.run(go())
