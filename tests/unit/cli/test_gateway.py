"""`shoal gateway` before it serves: addresses, certificates, and heads that do not take it."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from typer.testing import CliRunner

from shoal import __version__
from shoal.address import Address
from shoal.cli.app import app
from shoal.cli.gateway import _Gateway, gateway_credentials, head_address
from shoal.config import ApiSettings, GatewaySettings
from shoal.control.messages import ClusterDescription, DismissAnswer, DismissRequest, NodeMessage
from shoal.control.server import ControlServer, NodeConnection
from shoal.errors import ClusterError, ConfigError, NotPaired, ShoalError, VersionMismatch
from shoal.gateway.server import listening
from shoal.gateway.standing_by import StandbyServer
from shoal.launch import gateway_door, head_search
from shoal.launch.head_search import HeadSearch, is_final
from shoal.launch.keys import kept_path
from shoal.security.authority import Authority
from shoal.security.certificates import Role
from shoal.security.credentials import Credentials
from tests.support.cluster import free_port
from tests.support.doors import Door, door
from tests.support.peers import Peer, listener, silent
from tests.support.several import Called, served


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.168.1.20", Address("192.168.1.20", 7420)),
        ("head.local:7", Address("head.local", 7)),
        (" head ", Address("head", 7420)),
        ("[fd00::5]", Address("fd00::5", 7420)),
        ("[fd00::5]:7", Address("fd00::5", 7)),
    ],
)
def test_addresses_of_heads(text: str, address: Address) -> None:
    assert head_address(text) == address


@pytest.mark.parametrize("text", ["", "fd00::5", "head:", "head:0", "0.0.0.0", "a b"])
def test_what_is_no_address_of_a_head(text: str) -> None:
    with pytest.raises(ConfigError):
        head_address(text)


def test_a_command_without_a_head_says_so() -> None:
    done = CliRunner().invoke(app, ["gateway"])
    assert done.exit_code == 2 and "HEAD[:PORT]" in done.output


def test_a_gateway_serves_the_heads_settings_in_its_own_way() -> None:
    own = GatewaySettings(port=9, api_host="192.0.2.1", connections=7, response_cache="1MiB", data="/x", cors="*")
    got = own.serving(ApiSettings(responses=3, trust_text=True, port=1, open_api=True, trace_sample=0.5))
    assert (got.port, got.api_host, got.connections, got.response_cache, got.data) == (9, "192.0.2.1", 7, "1MiB", "/x")
    assert (got.responses, got.trust_text, got.trace_sample) == (3, True, 0.5)
    assert got.needs_key and got.origins == ["*"]


# Certificates


def kept(role: Role, address: Address, days: int = 0) -> Credentials:
    now = dt.datetime.now(dt.UTC) - dt.timedelta(days=days)
    made = Authority.create(now).credentials(role, "x", days=30, now=now)
    made.save(kept_path(str(address), Role.GATEWAY))
    return made


def credentials(*addresses: Address) -> Credentials | None:
    return asyncio.run(gateway_credentials(GatewaySettings(), addresses))


A, B = Address("a", 1), Address("b", 2)


def test_a_gateway_shows_what_it_got_for_any_of_its_heads() -> None:
    assert credentials(A, B) is None
    made = kept(Role.GATEWAY, B)
    assert credentials(A, B) == made
    assert kept_path("a:1", Role.GATEWAY) != kept_path("a:1")


@pytest.mark.parametrize("role", [Role.NODE, Role.HEAD])
def test_another_roles_certificate_is_refused_before_it_is_shown(role: Role) -> None:
    kept(role, A)
    with pytest.raises(ConfigError, match=f"holds a {role.value}'s certificate"):
        credentials(A)


def test_an_expired_certificate_is_refused_before_it_is_shown() -> None:
    kept(Role.GATEWAY, A, days=60)
    with pytest.raises(ConfigError, match="expired"):
        credentials(A)


def test_a_code_for_nobody_that_answers() -> None:
    settings = GatewaySettings(code="7QFK-3M9X")
    with pytest.raises(ClusterError, match="cannot be reached"):
        asyncio.run(gateway_credentials(settings, [Address("127.0.0.1", free_port()), Address("127.0.0.1", free_port())]))


# HeadSearch


class Attendant:
    """Says where it takes gateways."""

    def __init__(self, port: int) -> None:
        self.port = port

    def heard(self, conversation: NodeConnection, message: NodeMessage) -> None: ...
    def hung_up(self, conversation: NodeConnection) -> None: ...

    def describe(self) -> ClusterDescription:
        return ClusterDescription(cluster="m", gateway_port=self.port)

    def dismiss(self, request: DismissRequest) -> DismissAnswer:
        return DismissAnswer()


@asynccontextmanager
async def control(port: int, shown: Credentials | None = None, at: int = 0) -> AsyncIterator[Address]:
    """A control port that tells of that port for gateways."""
    server = ControlServer(Attendant(port), shown)
    await server.start("127.0.0.1", at)
    try:
        yield Address("127.0.0.1", server.port)
    finally:
        await server.stop()


def nobody() -> Address:
    return Address("127.0.0.1", free_port())


async def found(addresses: Sequence[Address], made: Door) -> str:
    """The address of the head that took a gateway."""
    looking = HeadSearch(addresses, None, "g", made.folder / "cache")
    engines = await looking.connect()
    await engines.close()
    return looking.address


def at_door(tmp_path: Path, work: Callable[[Door, Address], Awaitable[None]]) -> None:
    async def go() -> None:
        async with door(served(Called("alpha"), aliases={}), tmp_path, protected=False) as made, control(made.port) as address:
            await work(made, address)

    asyncio.run(go())


def test_the_first_that_takes_it_is_used(tmp_path: Path) -> None:
    async def work(made: Door, address: Address) -> None:
        async with control(0) as closed:
            assert await found([nobody(), closed, address, nobody()], made) == str(address)

    at_door(tmp_path, work)


def test_a_head_without_the_port_says_what_to_start_it_with() -> None:
    async def go() -> None:
        async with control(0) as closed:
            with pytest.raises(ConfigError, match="--gateway-port") as caught:
                await HeadSearch([closed], None, "g", Path("unused")).connect()
            assert is_final(caught.value)
            with pytest.raises(ClusterError, match=r"no head serves: .*--gateway-port.*no head at") as mixed:
                await HeadSearch([closed, nobody()], None, "g", Path("unused")).connect()
            assert not is_final(mixed.value)
            with pytest.raises(ClusterError) as both:
                await HeadSearch([closed, closed], None, "g", Path("unused")).connect()
            assert not is_final(both.value)

    asyncio.run(go())


def test_a_protected_head_wants_a_code(tmp_path: Path) -> None:
    async def go() -> None:
        authority = Authority.open(tmp_path / "authority")
        async with control(1, authority.credentials(Role.HEAD, "head")) as address:
            with pytest.raises(NotPaired, match="--code") as caught:
                await HeadSearch([address], None, "g", Path("unused")).connect()
            assert is_final(caught.value)

    asyncio.run(go())


def test_another_version_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(made: Door, address: Address) -> None:
        with pytest.raises(VersionMismatch) as caught:
            await found([address], made)
        assert str(caught.value) == (
            f"the peer speaks version 9.9.9 (the head at {address}), this is {head_search.__version__}; install the same shoal on every machine"
        )
        assert is_final(caught.value)

    monkeypatch.setattr(gateway_door, "__version__", "9.9.9")
    at_door(tmp_path, work)


@pytest.mark.parametrize("said", [b"", b"welcome to something else\n", b"refused it does not lead; ask another one\n"])
def test_what_does_not_take_it_is_no_head(said: bytes) -> None:
    async def go() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(said)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, control(server.sockets[0].getsockname()[1]) as address:
            with pytest.raises(ShoalError):
                await HeadSearch([address], None, "g", Path("unused")).connect()

    asyncio.run(go())


async def welcoming(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """And then silent."""
    await reader.readline()
    writer.write(f"welcome {__version__}\n".encode())
    await silent(reader, writer)


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As what forwards to a head that is not there may do, after a while."""
    await asyncio.sleep(0.6)


def test_what_forwards_and_hangs_up_late_is_no_head_that_wants_a_code() -> None:
    async def go() -> None:
        async with listener(closing) as port:
            with pytest.raises(ClusterError) as caught:
                await HeadSearch([Address("127.0.0.1", port)], None, "g", Path("unused")).connect()
            assert not is_final(caught.value)

    asyncio.run(go())


def test_a_head_that_says_nothing_after_its_welcome_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        async with listener(welcoming) as port, control(port) as address:
            with pytest.raises(ClusterError, match="does not take this gateway within 3 s") as caught:
                async with asyncio.timeout(60):
                    await HeadSearch([address], None, "g", Path("unused")).connect()
            assert not is_final(caught.value)

    monkeypatch.setattr(head_search, "_LONGEST", 3.0)
    asyncio.run(go())


# Without a head


@asynccontextmanager
async def gateway(where: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """One that looks for its first head, and does not end before it is told to."""
    stop = asyncio.Event()
    with listening("127.0.0.1", 0) as address:
        looking = HeadSearch([head_address(where)], None, "g", folder / "cache")
        running = asyncio.ensure_future(_Gateway(GatewaySettings(data=str(folder / "data")), looking, address, stop).run())
        try:
            url = f"http://127.0.0.1:{address.getsockname()[1]}"
            async with asyncio.timeout(60), httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
                yield http
            assert not running.done()
        finally:
            stop.set()
            await running


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        (silent, "has not answered yet"),
        (closing, "no head: the process that listens at .* does not answer"),
        (None, "nothing listens there"),
    ],
    ids=["it is slow", "something forwards to it", "it is not there yet"],
)
def test_a_gateway_waits_for_its_first_head_and_says_what_for(peer: Peer | None, words: str, tmp_path: Path) -> None:
    async def told(port: int) -> None:
        async with gateway(f"127.0.0.1:{port}", tmp_path) as http:
            assert (await http.get("/health/live")).status_code == 200
            while not re.search(words, (answer := await http.get("/health/ready")).json()["reason"]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert answer.status_code == 503

    async def go() -> None:
        async with listener(peer or silent) as port:
            await told(free_port() if peer is None else port)

    asyncio.run(go())


def test_a_gateway_waits_for_a_name_that_stands_for_no_head_yet(tmp_path: Path) -> None:
    async def go() -> None:
        async with gateway("head.invalid", tmp_path) as http:
            while "no head at head.invalid:7420" not in (await http.get("/health/ready")).json()["reason"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    asyncio.run(go())


def test_a_gateway_serves_a_head_that_comes_late(tmp_path: Path) -> None:
    async def work(made: Door) -> None:
        port = free_port()
        async with gateway(f"127.0.0.1:{port}", tmp_path) as http:
            assert (await http.get("/health/ready")).status_code == 503
            async with control(made.port, at=port):
                while (await http.get("/health/ready")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                assert [card["id"] for card in (await http.get("/v1/models")).json()["data"]] == ["alpha"]

    async def go() -> None:
        async with door(served(Called("alpha"), aliases={}), tmp_path, protected=False) as made:
            await work(made)

    asyncio.run(go())


def test_a_gateway_without_a_head_says_why() -> None:
    async def go() -> None:
        with listening("127.0.0.1", 0) as address:
            away = StandbyServer(address.dup(), lambda: "it is being started")
            serving = asyncio.ensure_future(away.serve())
            try:
                await told(f"http://127.0.0.1:{address.getsockname()[1]}")
            finally:
                away.stop()
                await serving

    async def told(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            assert (await http.get("/health/live")).json() == {"live": True}
            assert (await http.get("/health")).json() == {"live": True, "ready": False, "reason": "it is being started", "models": []}
            assert (await http.get("/health/ready")).status_code == 503
            for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("DELETE", "/v1/files/x"), ("GET", "/metrics")):
                answer = await http.request(method, path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
                assert answer.json()["error"]["message"] == "it is being started"
            anthropic = await http.post("/v1/messages", json={})
            assert anthropic.status_code in (503, 529) and anthropic.json()["type"] == "error"

    asyncio.run(go())
