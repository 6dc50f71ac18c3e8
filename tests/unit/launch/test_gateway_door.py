"""Gateways at a head's port: who gets in, and what they have of the head."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import time
from typing import Any

import httpx2 as httpx
import pytest
import uvloop

from shoal import __version__
from shoal.errors import ConfigError, IdTaken, NotAuthenticated, RateLimited, RemoteProtocolError, UnknownAnswer, VersionMismatch
from shoal.gateway.app import Home, create_app
from shoal.gateway.auth.key import KeyLimits, KeyRole
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.workers import channel, messages
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.client import RemoteEngines
from shoal.gateway.workers.greeting import greet
from shoal.launch.tokenizers import opened
from shoal.request import Priority
from shoal.security.certificates import Role
from tests.support.doors import API, Door, run
from tests.support.engine import FakeEngine
from tests.support.http import eventually
from tests.support.remote import NOBODY, Workers, some
from tests.support.remote import run as run_workers
from tests.support.requests import asked, begun, read, text
from tests.support.several import Called, half, served


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="shoal-") as made:  # pytest's own folders are too long for a socket's name
        yield Path(made)


def one() -> Any:
    return served(Called("alpha"), aliases={})


def hanging() -> Any:
    return served(Called("alpha", half, hang=True), aliases={})


def application(gateway: RemoteEngines, made: Door) -> httpx.AsyncClient:
    assert gateway.home is not None
    home = Home(gateway.home.responses, gateway.home.api)
    app = create_app(gateway, made.settings, gateway.home.keyring, gateway.limiter, gateway.operator, home)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


@pytest.mark.parametrize("protected", [True, False])
def test_a_gateway_says_what_the_engine_says(protected: bool, folder: Path) -> None:
    async def work(made: Door) -> None:
        gateway = await made.join()
        engine = await gateway.find(None)
        (stream,) = await begun(engine, asked())
        assert text(await read(stream)) == "alpha"
        assert engine.tokenizer.encode("hello") == opened(made.files("alpha"), False).encode("hello")

    run(one, folder, work, protected)


@pytest.mark.parametrize("role", [Role.NODE, Role.HEAD])
def test_certificates_of_other_roles_are_refused(role: Role, folder: Path) -> None:
    async def work(made: Door) -> None:
        reader, writer = await made.connection(role)
        with pytest.raises(ConfigError, match=f"a {role.value}'s, not a gateway's"):
            await greet(reader, writer, __version__)
        assert await reader.read() == b""
        writer.close()

    run(one, folder, work)


def test_another_version_is_refused(folder: Path) -> None:
    async def work(made: Door) -> None:
        reader, writer = await made.connection()
        with pytest.raises(VersionMismatch, match=f"the peer speaks version {__version__}, this is 0.0.1"):
            await greet(reader, writer, "0.0.1")
        assert await reader.read() == b""
        writer.close()

    run(one, folder, work)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b"x" * 100_000 + b"\n", b"\n"])
def test_what_is_no_gateway_is_hung_up_on(said: bytes, folder: Path) -> None:
    async def work(made: Door) -> None:
        reader, writer = await made.connection()
        writer.write(said)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert text(await read((await begun(await (await made.join()).find(None), asked()))[0])) == "alpha"

    run(one, folder, work, protected=False)


@pytest.mark.parametrize("said", [b"refused because\n", b"welcome 0.0.1\n", b"hello\n", b"", b"x" * 1000 + b"\n"])
def test_a_gateway_reads_nothing_else_than_a_welcome(said: bytes) -> None:
    async def work() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(said)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            with pytest.raises((ConfigError, RemoteProtocolError, EOFError, ConnectionError)):
                await greet(reader, writer, __version__)
            writer.close()

    asyncio.run(work())


def test_models_come_and_go_at_gateways(folder: Path) -> None:
    async def work(made: Door) -> None:
        gateway = await made.join()
        made.engines.add(Called("beta"))
        await eventually(lambda: [*gateway.names] == ["alpha", "beta"])
        beta = await gateway.find("beta")
        assert beta.tokenizer.encode("hello")
        assert {path.name for path in (made.folder / "caches" / "g").iterdir()}
        made.engines.remove("beta")
        await eventually(lambda: [*gateway.names] == ["alpha"])

    run(one, folder, work)


def test_a_named_answer_goes_on_at_another_gateway(folder: Path) -> None:
    async def work(made: Door) -> None:
        first, second = await made.join("a"), await made.join("b")
        (stream,) = await begun(await first.find(None), asked(), named=True)
        assert await some(stream, 3) == "Hel"
        await made.lose(first)
        engine = await second.find(None)
        await eventually(lambda: made.server._orphans)
        found = await engine.find("a", NOBODY)
        assert found is not None
        assert await some(found.streams[0], 3) == "Hel"

    run(hanging, folder, work)


def test_what_nobody_named_ends_with_its_gateway(folder: Path) -> None:
    async def work(made: Door) -> None:
        gateway = await made.join()
        (stream,) = await begun(await gateway.find(None), asked())
        assert await some(stream, 1) == "H"
        assert made.server.inside == 1
        await made.lose(gateway)
        await eventually(lambda: not made.server._answers)

    run(hanging, folder, work)


def test_a_gateway_takes_over_nothing_that_it_does_not_ask_for(folder: Path) -> None:
    async def work(made: Door) -> None:
        first = await made.join("a")
        await begun(await first.find(None), asked(), named=True)
        await made.lose(first)
        await eventually(lambda: made.server._orphans)
        second = await made.join("b")
        assert [engine.resumed() for engine in second.all] == [[]]
        assert made.server._orphans

    run(hanging, folder, work)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_gateway_that_does_not_read_is_given_up(
    loop: Callable[[], asyncio.AbstractEventLoop], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MAX_UNREAD", 1 << 16)

    async def work(made: Door) -> None:
        reader, writer = await made.connection()
        await greet(reader, writer, __version__)
        deaf: Channel[messages.FromHead] = Channel(reader, writer, messages.FromHead)
        deaf.say(messages.Join(1, "deaf"))
        assert isinstance(await deaf.hear(), messages.Welcome)
        writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
        (worker,) = made.server._joined
        for _ in range(2000):
            worker.channel.say(messages.PartRead(0, bytes(1 << 13)))
            await asyncio.sleep(0)
        await eventually(lambda: not made.server._joined)
        writer.transport.abort()
        gateway = await made.join()
        assert (await gateway.find(None)).name == "alpha"

    run(one, folder, work, loop=loop)


def test_what_gateways_alone_may_ask_is_refused_to_others() -> None:
    """A head without gateways has no home to ask of."""

    async def work(made: Workers) -> None:
        worker = await made.join()
        with pytest.raises(RemoteProtocolError, match="takes no gateways"):
            await worker._link.ask(messages.ListParts(worker._link.number(), "fake"), lambda listed: listed)
        assert worker.home is None

    run_workers(FakeEngine(), work)


# Keys


def test_keys_are_the_heads(folder: Path) -> None:
    async def work(made: Door) -> None:
        gateway = await made.join()
        assert gateway.home is not None
        ring, store = gateway.home.keyring, KeyStore(made.settings.data_folder)
        assert not ring.required
        key, token = store.create("alice", time(), KeyLimits(requests=5))
        await eventually(lambda: ring.required)
        assert ring.admit(token).limits == key.limits
        assert ring.named(key.id) == "alice"
        store.revoke("alice", time())

        def revoked() -> bool:
            try:
                ring.admit(token)
            except NotAuthenticated:
                return True
            return False

        await eventually(revoked)
        assert ring.required

    run(one, folder, work)


def test_no_secret_of_a_key_is_told(folder: Path) -> None:
    async def work(made: Door) -> None:
        key, token = KeyStore(made.settings.data_folder).create("alice", time())
        gateway = await made.join()
        assert gateway.home is not None
        ring = gateway.home.keyring
        await eventually(lambda: ring.keys)
        told = ring.keys
        assert [each.digest for each in told] == [key.digest]
        assert token.rpartition("-")[2] not in repr(told)

    run(one, folder, work)


def test_use_at_gateways_is_written_down_at_the_head(folder: Path) -> None:
    async def work(made: Door) -> None:
        key, _ = KeyStore(made.settings.data_folder).create("alice", time())
        gateway = await made.join()
        assert gateway.home is not None
        ring = gateway.home.keyring
        ring.used(key.id, requests=1, prompt=7, completion=9)
        ring.flush()
        await eventually(lambda: made.home.keyring._uses)
        made.home.keyring.flush()
        (kept,) = await asyncio.to_thread(ring.all)
        assert (kept.requests, kept.prompt_tokens, kept.completion_tokens) == (1, 7, 9)

    run(one, folder, work)


def test_the_head_knows_all_use_at_a_gateway_that_has_finished(folder: Path) -> None:
    """It may end at once then, and hears nothing more."""

    async def work(made: Door) -> None:
        key, _ = KeyStore(made.settings.data_folder).create("alice", time())
        gateway = await made.join()
        home = gateway.home
        assert home is not None

        async def finish() -> None:
            home.keyring.used(key.id, requests=1, prompt=7, completion=9)

        ending = asyncio.ensure_future(gateway.finish(finish))
        await made.server.finish()
        made.home.keyring.flush()
        await ending
        (kept,) = made.home.keyring.all()
        assert (kept.requests, kept.prompt_tokens, kept.completion_tokens) == (1, 7, 9) and kept.last_used

    run(one, folder, work)


def test_a_gateway_that_cannot_finish_does_not_say_that_it_has(folder: Path) -> None:
    async def work(made: Door) -> None:
        gateway = await made.join()

        async def finish() -> None:
            raise ZeroDivisionError

        ending = asyncio.ensure_future(gateway.finish(finish))
        head = asyncio.ensure_future(made.server.finish())
        with pytest.raises(ZeroDivisionError):
            await ending
        await gateway.scrape()
        assert not head.done()
        await made.lose(gateway)
        await head

    run(one, folder, work)


def test_operators_manage_the_heads_keys_from_a_gateway(folder: Path) -> None:
    async def work(made: Door) -> None:
        gateway = await made.join()
        assert gateway.home is not None
        ring = gateway.home.keyring
        key, token = await asyncio.to_thread(ring.create, "bob", KeyLimits(), None, Priority.URGENT, KeyRole.USER)
        assert [each.name for each in KeyStore(made.settings.data_folder).all()] == ["bob"]
        with pytest.raises(ConfigError, match="already exists"):
            await asyncio.to_thread(ring.create, "bob", KeyLimits(), None, Priority.URGENT, KeyRole.USER)
        await eventually(lambda: ring.known(key.id))
        assert ring.admit(token).name == "bob"
        revoked = await asyncio.to_thread(ring.revoke, key.id)
        assert revoked.revoked is not None

    run(one, folder, work)


def test_limits_hold_over_all_gateways(folder: Path) -> None:
    async def work(made: Door) -> None:
        first, second = await made.join("a"), await made.join("b")
        limits = KeyLimits(concurrency=1)
        await first.limiter.enter(NOBODY, limits)
        with pytest.raises(RateLimited):
            await second.limiter.enter(NOBODY, limits)
        await made.lose(first)
        await eventually(lambda: len(made.server._joined) == 1)
        await second.limiter.enter(NOBODY, limits)

    run(one, folder, work)


# What the head keeps


def response(id: str, status: str = "in_progress") -> dict[str, Any]:
    return {"id": id, "previous_response_id": None, "status": status, "output": [{"n": 1, "f": 0.5, "s": "é", "none": None}]}


def test_responses_are_kept_at_the_head(folder: Path) -> None:
    async def work(made: Door) -> None:
        first, second = [(await made.join(name)).home for name in "ab"]
        assert first is not None and second is not None and first.responses.keeps
        await asyncio.to_thread(first.responses.begin, response("r"), [{"role": "user"}], "alice")
        with pytest.raises(IdTaken):
            await asyncio.to_thread(second.responses.begin, response("r"), [], "alice")
        await asyncio.to_thread(first.responses.end, response("r", "completed"))
        kept = await asyncio.to_thread(second.responses.get, "r", "alice")
        assert (kept.response, kept.input) == (response("r", "completed"), [{"role": "user"}])
        assert await asyncio.to_thread(second.responses.chain, "r", "alice") == [kept]
        with pytest.raises(UnknownAnswer):
            await asyncio.to_thread(second.responses.get, "r", "bob")
        await asyncio.to_thread(second.responses.delete, "r", "alice")
        with pytest.raises(UnknownAnswer):
            await asyncio.to_thread(first.responses.get, "r", "alice")

    run(one, folder, work)


def test_responses_of_a_gateway_that_is_gone_have_failed_unless_another_has_them(folder: Path) -> None:
    async def work(made: Door) -> None:
        first, second = await made.join("a"), await made.join("b")
        assert first.home is not None and second.home is not None
        for id in ("lost", "moved", "ended"):
            await asyncio.to_thread(first.home.responses.begin, response(id), [])
        await asyncio.to_thread(second.home.responses.adopt, "moved")
        await asyncio.to_thread(first.home.responses.end, response("ended", "completed"))
        await made.lose(first)

        async def statuses() -> list[str]:
            kept = second.home and second.home.responses
            assert kept is not None
            return [(await asyncio.to_thread(kept.get, id)).response["status"] for id in ("lost", "moved", "ended")]

        while (await statuses())[0] == "in_progress":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await statuses() == ["failed", "in_progress", "completed"]

    run(one, folder, work)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/batches/b/cancel"), ("POST", "/v1/batches")]
)
def test_files_and_batches_are_at_the_head(method: str, path: str, folder: Path) -> None:
    async def work(made: Door) -> None:
        async with application(await made.join(), made) as http:
            answer = await http.request(method, path)
            assert answer.status_code == 501
            assert API in answer.json()["error"]["message"]
            assert (await http.get("/v1/models")).json()["data"][0]["id"] == "alpha"
            assert "/v1/files" not in (await http.get("/openapi.json")).json()["paths"]

    run(one, folder, work)
