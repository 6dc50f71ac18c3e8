"""Credentials, and who gets through TLS with them: over real sockets, to an asyncio server and to a gRPC server."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import functools
import ssl
import stat
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
import uvloop
from cryptography import x509

from shoal.errors import ConfigError
from shoal.security.authority import Authority
from shoal.security.certificates import Role, server_name
from shoal.security.credentials import Credentials

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
OLD = [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1]
AUTHORITY = Authority.create(NOW - 500 * DAY)
STRANGER = Authority.create(NOW)
HEAD = AUTHORITY.credentials(Role.HEAD, "head")
NODE = AUTHORITY.credentials(Role.NODE, "anna")
EXPIRED = AUTHORITY.credentials(Role.NODE, "bert", now=NOW - 400 * DAY)
FOREIGN = STRANGER.credentials(Role.NODE, "carl")
FORGED = dataclasses.replace(FOREIGN, authority=AUTHORITY.credentials(Role.NODE, "x").authority)  # trusts us, is not trusted


# The file, and what can be wrong with it.


def test_they_are_saved_for_their_owner_alone(tmp_path: Path):
    path = tmp_path / "new" / "node.pem"
    NODE.save(path)
    NODE.save(path)
    assert Credentials.load(path) == NODE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["node.pem"]


def test_they_say_who_they_are_and_keep_the_key_to_themselves():
    assert (NODE.name, NODE.role, HEAD.role) == ("anna", Role.NODE, Role.HEAD)
    assert NODE.authority_fingerprint == AUTHORITY.fingerprint
    assert NODE.expires > NOW + 364 * DAY
    assert "BEGIN" not in repr(NODE) + str(NODE) + f"{[NODE]}"


def test_missing_open_and_spoilt_files(tmp_path: Path):
    path = tmp_path / "node.pem"
    with pytest.raises(ConfigError, match="--code CODE"):
        Credentials.load(path)
    NODE.save(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod"):
        Credentials.load(path)
    for spoilt in (b"", b"\x00" * 50, NODE.private_key + NODE.certificate, NODE.certificate + NODE.authority):
        path.write_bytes(spoilt)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="delete it and pair"):
            Credentials.load(path)


def test_good_ones_pass_the_check():
    NODE.check(NOW)
    HEAD.check(NOW)


@pytest.mark.parametrize(
    ("credentials", "when", "what"),
    [
        (EXPIRED, NOW, "expired"),
        (NODE, NOW + 366 * DAY, "expired"),
        (NODE, NOW - 3 * DAY, "clock"),
        (dataclasses.replace(NODE, private_key=HEAD.private_key), NOW, "key"),
        (FORGED, NOW, "authority"),
    ],
    ids=["expired", "late", "early", "key", "authority"],
)
def test_what_is_wrong_is_said(credentials: Credentials, when: dt.datetime, what: str):
    with pytest.raises(ConfigError, match=what):
        credentials.check(when)


# Over TLS. An attempt returns what the server echoed, '' where it was not let in.


class Echo(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self._buffer = bytearray(1024)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self._transport.write(bytes(self._buffer[:nbytes]))


@asynccontextmanager
async def tensor_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def attempt(port: int, context: ssl.SSLContext | None, name: str | None = server_name(Role.NODE)) -> str:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name if context else None)
    except (OSError, ssl.SSLError):
        return ""
    try:
        writer.write(b"hello")
        return (await reader.read(100)).decode("latin-1")
    except (OSError, ssl.SSLError):
        return ""
    finally:
        writer.transport.abort()


def client(
    trusted: Credentials, shown: Credentials | None, folder: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """What a program that does not use shoal's contexts may try."""
    return permissive(ssl.PROTOCOL_TLS_CLIENT, trusted, shown, folder, version)


def permissive(
    protocol: int, trusted: Credentials, shown: Credentials | None, folder: Path, version: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = version or ssl.TLSVersion.TLSv1
        context.maximum_version = version or ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=trusted.authority.decode())
    if shown is not None:
        (folder / "shown.pem").write_bytes(shown.private_key + shown.certificate)
        context.load_cert_chain(folder / "shown.pem")
    return context


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    """Runs a scenario on either event loop. One that hangs fails."""

    async def limited(scenario: Awaitable[None]) -> None:
        async with asyncio.timeout(5):
            await scenario

    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def start(scenario: Awaitable[None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(limited(scenario))

    return start


@pytest.mark.parametrize("shown", [NODE, HEAD], ids=["node", "head"])
def test_members_reach_each_other_over_tls_1_3(run, shown: Credentials):
    async def scenario() -> None:
        async with tensor_server(NODE.server_context()) as port:
            assert await attempt(port, shown.client_context()) == "hello"
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=shown.client_context(), server_hostname=server_name(Role.NODE))
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            writer.transport.abort()

    run(scenario())


INTRUDERS: dict[str, Callable[[Path], ssl.SSLContext | None]] = {
    "no certificate": lambda folder: client(NODE, None, folder),
    "another cluster's certificate": lambda folder: client(NODE, FOREIGN, folder),
    "an expired certificate": lambda folder: client(NODE, EXPIRED, folder),
    "plain text": lambda folder: None,
    "TLS 1.2": lambda folder: client(NODE, NODE, folder, ssl.TLSVersion.TLSv1_2),
    "TLS 1.1": lambda folder: client(NODE, NODE, folder, ssl.TLSVersion.TLSv1_1),
    "TLS 1.0": lambda folder: client(NODE, NODE, folder, ssl.TLSVersion.TLSv1),
}


@pytest.mark.parametrize("intruder", INTRUDERS.values(), ids=INTRUDERS)
def test_the_tensor_port_turns_away(run, tmp_path: Path, intruder: Callable[[Path], ssl.SSLContext | None]):
    async def scenario() -> None:
        async with tensor_server(NODE.server_context()) as port:
            assert "hello" not in await attempt(port, intruder(tmp_path))
            assert await attempt(port, NODE.client_context()) == "hello"

    run(scenario())


@pytest.mark.parametrize("version", [*OLD, ssl.TLSVersion.TLSv1_2])
def test_the_old_clients_of_these_tests_do_work_elsewhere(run, tmp_path: Path, version: ssl.TLSVersion):
    async def scenario() -> None:
        async with tensor_server(permissive(ssl.PROTOCOL_TLS_SERVER, NODE, NODE, tmp_path)) as port:
            assert await attempt(port, client(NODE, NODE, tmp_path, version)) == "hello"

    run(scenario())


@pytest.mark.parametrize(
    ("server", "name"),
    [
        (NODE, server_name(Role.HEAD)),
        (HEAD, server_name(Role.NODE)),
        (NODE, None),
        (FORGED, server_name(Role.NODE)),
        (EXPIRED, server_name(Role.NODE)),
    ],
    ids=["a node as the head", "the head as a node", "no name", "another cluster's", "expired"],
)
def test_a_client_trusts_no_server_but_the_one_it_wants(run, server: Credentials, name: str | None):
    async def scenario() -> None:
        async with tensor_server(server.server_context()) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await asyncio.open_connection("127.0.0.1", port, ssl=HEAD.client_context(), server_hostname=name)

    run(scenario())


# Over gRPC.


@asynccontextmanager
async def control_server(credentials: Credentials) -> AsyncIterator[int]:
    async def echo(request: bytes, context: Any) -> bytes:
        return request + context.auth_context()["x509_common_name"][0]

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Echo": handler}),))
    port = server.add_secure_port("127.0.0.1:0", credentials.grpc_server_credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def ask(channel: grpc.aio.Channel) -> str:
    """The answer, or the name of the status where there is none."""
    async with channel:
        try:
            call: Any = channel.unary_unary("/test/Echo")
            return (await call(b"I am ", timeout=5)).decode()
        except grpc.aio.AioRpcError as error:
            return error.code().name


def stranger_channel(port: int, root: Credentials, shown: Credentials | None) -> grpc.aio.Channel:
    pair = (shown.private_key, shown.certificate) if shown else (None, None)
    options = [("grpc.ssl_target_name_override", "head.shoal")]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(root.authority, *pair), options)


def grpc_test(scenario: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    async def limited(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(8):
            await scenario(*args, **kwargs)

    @functools.wraps(scenario)
    def start(*args: Any, **kwargs: Any) -> None:
        asyncio.run(limited(*args, **kwargs))

    return start


@pytest.mark.parametrize(
    "dial",
    [
        lambda port: stranger_channel(port, NODE, None),
        lambda port: stranger_channel(port, NODE, FOREIGN),
        lambda port: stranger_channel(port, NODE, EXPIRED),
        lambda port: grpc.aio.insecure_channel(f"127.0.0.1:{port}"),
    ],
    ids=["no certificate", "another cluster's certificate", "an expired certificate", "plain text"],
)
@grpc_test
async def test_the_control_port_turns_away(dial: Callable[[int], grpc.aio.Channel]) -> None:
    async with control_server(HEAD) as port:
        assert await ask(dial(port)) == "UNAVAILABLE"
        assert await ask(NODE.grpc_channel(f"127.0.0.1:{port}")) == "I am anna"


@pytest.mark.parametrize("server", [NODE, FORGED], ids=["a node", "another cluster"])
@grpc_test
async def test_nobody_poses_as_the_head(server: Credentials) -> None:
    async with control_server(server) as port:
        assert await ask(NODE.grpc_channel(f"127.0.0.1:{port}")) == "UNAVAILABLE"


@pytest.mark.parametrize("version", [*OLD, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@grpc_test
async def test_grpc_takes_tls_1_2_and_newer(version: ssl.TLSVersion, tmp_path: Path) -> None:
    """1.2 cannot be switched off from Python (grpc#37305); a release that can will not break this, one that takes older ones will."""
    async with control_server(HEAD) as port:
        context = client(NODE, NODE, tmp_path, version)
        context.set_alpn_protocols(["h2"])
        answer = await attempt(port, context, server_name(Role.HEAD))
        assert bool(answer) == (version not in OLD)
        assert await ask(NODE.grpc_channel(f"127.0.0.1:{port}")) == "I am anna"


def test_a_certificate_without_a_role_is_no_credential():
    lone = dataclasses.replace(NODE, certificate=NODE.authority)
    with pytest.raises(ConfigError, match="no role"):
        _ = lone.role
    assert x509.load_pem_x509_certificate(lone.certificate).subject
