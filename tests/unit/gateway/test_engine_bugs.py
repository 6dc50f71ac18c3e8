"""An engine's bug is an answer, not a request that hangs."""

from __future__ import annotations

import asyncio
from typing import Any

from shoal.request import Request, TokenChunk
from tests.support.app import app_of
from tests.support.engine import FakeEngine
from tests.support.http import COMPLETIONS


def test_an_engines_bug_is_a_500_and_not_a_request_that_hangs() -> None:
    def script(request: Request) -> list[Any]:
        return [TokenChunk(request.id, 5, 65)]  # no such choice

    async def go() -> int:
        async with asyncio.timeout(2):
            import httpx2 as httpx

            transport = httpx.ASGITransport(app_of(FakeEngine(script)), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return (await client.post(COMPLETIONS, json={"prompt": "x"})).status_code

    assert asyncio.run(go()) == 500
