"""Work beside other work: it ends with it, and does not fail unheard."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from shoal.beside import beside


class Work:
    def __init__(self, failure: Exception | None = None) -> None:
        self._failure, self.ended = failure, False

    async def run(self) -> None:
        try:
            await asyncio.sleep(0)  # until the others have begun
            if self._failure is not None:
                raise self._failure
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.ended = True


def test_it_ends_when_the_context_is_left() -> None:
    async def go() -> None:
        one, other = Work(), Work()
        async with beside(one.run(), other.run()):
            await asyncio.sleep(0)
            assert not one.ended and not other.ended
        assert one.ended and other.ended
        async with beside():
            pass

    asyncio.run(go())


def test_a_failure_beside_ends_the_work_and_is_raised_itself() -> None:
    async def go() -> None:
        other = Work()
        with pytest.raises(ValueError, match="beside"):
            async with beside(Work(ValueError("beside")).run(), other.run()):
                await asyncio.Event().wait()
        assert other.ended

    asyncio.run(go())


def test_a_failure_of_the_work_is_raised_as_it_is() -> None:
    async def go() -> None:
        other = Work()

        async def work() -> None:
            async with beside(other.run()):
                await asyncio.sleep(0)
                raise ValueError("within")

        with pytest.raises(ValueError, match="within"):
            await work()
        assert other.ended

    asyncio.run(go())


def test_who_cancels_the_work_cancels_what_is_beside() -> None:
    async def go() -> None:
        other = Work()

        async def work() -> None:
            async with beside(other.run()):
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled() and other.ended

    asyncio.run(go())
