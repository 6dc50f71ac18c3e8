"""What one process does in turn, where a part of it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal.cli import succession
from shoal.config import ApiSettings, HeadSettings
from shoal.control.messages import Serves
from shoal.errors import ConfigError
from shoal.gateway.server import listening
from shoal.gateway.standing_by import StandbyServer
from shoal.leadership.lease import Grant
from shoal.leadership.memory import MemoryKeeper, MemoryLease
from shoal.node.led_mark import led
from shoal.node.successor import Successor


class Api:
    """It ends a moment after it is told to, as one with open connections."""

    port = inside = 0

    def __init__(self) -> None:
        self._told = asyncio.Event()
        self.ended = False

    async def serve(self) -> None:
        await self._told.wait()
        await asyncio.sleep(0.05)
        self.ended = True

    async def finish(self) -> None: ...

    def stop(self) -> None:
        self._told.set()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeadSettings:
    keeper = MemoryKeeper()
    monkeypatch.setattr(succession, "lease_of", lambda *args: MemoryLease(keeper))
    api = ApiSettings(port=0, data=str(tmp_path / "data"))
    return HeadSettings(lease="witness://127.0.0.1:1", standby="127.0.0.1:1", state=str(tmp_path / "state"), api=api, control_port=0)


def turns(settings: HeadSettings, address: Any = None) -> succession._Turns:
    return succession._Turns(settings, None, address, [], asyncio.Event(), lambda head: None)


def test_a_standby_whose_api_fails_says_so(settings: HeadSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: StandbyServer) -> None:
        self._socket.close()
        raise OSError("the API broke")

    monkeypatch.setattr(StandbyServer, "serve", fails)

    async def go() -> None:
        with listening("127.0.0.1", 0) as address:
            await turns(settings, address).run()

    with pytest.raises(OSError, match="the API broke"):
        asyncio.run(go())


def test_the_api_of_a_head_has_ended_when_what_serves_it_is_cancelled(settings: HeadSettings) -> None:
    async def go() -> None:
        api = Api()
        candidate = SimpleNamespace(until_lost=asyncio.Event().wait)
        work = turns(settings)._serve(cast("Any", None), api, cast("Any", candidate), cast("Any", asyncio.Event().wait()))
        serving = asyncio.ensure_future(work)
        await asyncio.sleep(0.05)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert api.ended and asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())


def test_what_is_elected_prepares_no_more_models_and_marks_what_it_has(settings: HeadSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = asyncio.Event()

    async def go() -> None:
        made = turns(settings)
        made._own = "127.0.0.1:1"
        made._successor = Successor(settings, [], lambda reference, settings: cast("Any", prepared.wait()))
        made._successor.learn(Serves(settings="{}", models='[{"engine": [["model", "a"]], "replicas": 1, "pinned": []}]'))
        await asyncio.sleep(0)
        monkeypatch.setattr(succession, "Head", lambda *args: (_ for _ in ()).throw(ConfigError("it is not wanted")))
        with pytest.raises(ConfigError, match="not wanted"):
            await made._lead(cast("Any", SimpleNamespace(leads=lambda now: True)), Grant(3, 0.0))
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert settings.state_folder is not None and led(settings.state_folder) == 3

    asyncio.run(go())
