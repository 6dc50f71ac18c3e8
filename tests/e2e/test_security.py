"""A protected cluster as it is used: a code, once, and nobody else gets in."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shoal.control.channel import DESCRIBE
from shoal.control.messages import ClusterDescription, DescribeRequest
from shoal.control.protobuf import decoder, encode
from shoal.security.authority import Authority
from shoal.security.certificates import Role, server_name
from shoal.security.credentials import Credentials
from tests.support import forks
from tests.support.cluster import Cluster, Process, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]


class Protected:
    """A head that asks for codes, and one node that has paired. Each machine has a cache of its own, models shared by links."""

    def __init__(self, cluster: Cluster, folder: Path, models: Path) -> None:
        self.cluster, self.folder, self._models = cluster, folder, models
        self._joined = 0
        self.answer: list[str] = []

    def home(self, name: str) -> str:
        """The cache folder of a machine."""
        home = self.folder / name
        if not home.exists():
            home.mkdir()
            for entry in self._models.iterdir():
                if entry.name not in ("keys", "api", "heads", "chat"):
                    (home / entry.name).symlink_to(entry)
        return str(home)

    @property
    def code(self) -> str:
        return re.findall(r"pairing code (\S+),", self.cluster.head.said)[-1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.cluster.control_port}"

    def join(self, machine: str, *flags: str) -> Process:
        self._joined += 1
        log = self.folder / f"join-{self._joined}.log"
        return Process(log, "join", self.address, "--threads", "1", "--memory", "1GiB", *flags, SHOAL_CACHE=self.home(machine))

    def refused(self, machine: str, *flags: str) -> str:
        """What a node that does not get in says."""
        words = ("join", self.address, "--threads", "1", "--memory", "1GiB", *flags)
        done = forks.run(words, {**os.environ, "COLUMNS": "200", "SHOAL_HOME": self.home(machine)})
        assert done.returncode != 0, done.stderr
        return done.stdout + done.stderr

    def still_serves(self) -> None:
        assert self.cluster.texts("Two and two are", 4) == self.answer


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Protected]:
    folder = tmp_path_factory.mktemp("protected")
    models = smollm2.parent
    while models.name != "shoal" and not (models / "models").exists() and models != models.parent:
        models = models.parent
    with cluster(folder) as made, contextlib.ExitStack() as stack:
        there = Protected(made, folder, models)
        Authority.open(Path(there.home("head")) / "keys" / "authority", dt.datetime.now(dt.UTC) - dt.timedelta(days=60))
        head = Process(
            folder / "head.log", "-v", "serve", "--secure", "--discovery", "none", "--port", str(made.port), "--control-port", str(made.control_port),
            SHOAL_CACHE=there.home("head"),
        )  # fmt: skip
        stack.callback(head.end)
        made._processes.append(head)
        head.until_said("pairing code")
        node = there.join("node", "--name", "paired", "--code", there.code)
        stack.callback(node.end)
        made.until_ready()
        there.answer = made.texts("Two and two are", 4)
        yield there


def test_a_node_that_paired_comes_back_without_a_code(protected: Protected):
    again = protected.join("node", "--name", "again")
    try:
        until(lambda: "again joined" in protected.cluster.head.said, again.describe)
    finally:
        again.end()
    protected.still_serves()


def test_a_node_without_a_code_is_told_what_to_do(protected: Protected):
    assert "--code" in protected.refused("stranger")
    protected.still_serves()


def test_a_code_is_good_once(protected: Protected):
    code = protected.code
    second = protected.join("second", "--name", "second", "--code", code)
    try:
        until(lambda: "second joined" in protected.cluster.head.said, second.describe)
        assert "used" in protected.refused("third", "--code", code)
    finally:
        second.end()
    protected.still_serves()


def test_a_certificate_of_another_cluster_is_refused(protected: Protected):
    keys = Path(protected.home("foreign")) / "keys"
    other = Authority.open(protected.folder / "other-authority").credentials(Role.NODE, "foreign")
    other.save(keys / f"127.0.0.1-{protected.cluster.control_port}.pem")
    assert "does not prove" in protected.refused("foreign")
    protected.still_serves()


def test_an_expired_certificate_is_refused_before_it_is_shown(protected: Protected):
    keys = Path(protected.home("late")) / "keys"
    authority = Authority.open(Path(protected.home("head")) / "keys" / "authority")
    old = authority.credentials(Role.NODE, "late", days=1, now=dt.datetime.now(dt.UTC) - dt.timedelta(days=30))
    old.save(keys / f"127.0.0.1-{protected.cluster.control_port}.pem")
    assert "expired" in protected.refused("late")


def _ports(protected: Protected) -> list[int]:
    import psutil

    family = [p for process in [protected.cluster.head] for p in process.family()]
    own = [c for p in family for c in p.net_connections("tcp")]
    api = protected.cluster.port
    return sorted({c.laddr.port for c in own if c.status == psutil.CONN_LISTEN} - {api})


def test_plain_text_gets_nowhere_on_any_port(protected: Protected):
    ports = _ports(protected)
    assert len(ports) == 3, ports  # control, pairing, tensors
    for port in ports:
        for said in (b"GET / HTTP/1.1\r\n\r\n", bytes(64), b"\x1b\x5a\x01\x01" + bytes(28)):
            with socket.create_connection(("127.0.0.1", port), 10) as plain:
                plain.sendall(said)
                plain.shutdown(socket.SHUT_WR)
                heard = b""
                with contextlib.suppress(ConnectionResetError):
                    while data := plain.recv(4096):
                        heard += data
                assert b"HELLO" not in heard and b"200 OK" not in heard
    protected.still_serves()


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_no_port_speaks_a_weak_version_of_tls(protected: Protected, version: str):
    for port in _ports(protected):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        with pytest.raises((ssl.SSLError, OSError)), socket.create_connection(("127.0.0.1", port), 10) as raw, context.wrap_socket(raw):
            pass
    protected.still_serves()


def _asks(protected: Protected, credentials: Credentials | None) -> ClusterDescription:
    options = [("grpc.ssl_target_name_override", server_name(Role.HEAD))]
    root = Path(protected.home("head")) / "keys" / "authority"
    authority = Authority.open(root).credentials(Role.NODE, "x").authority
    pair = (None, None) if credentials is None else (credentials.private_key, credentials.certificate)
    with grpc.secure_channel(protected.address, grpc.ssl_channel_credentials(authority, *pair), options) as channel:
        call = channel.unary_unary(DESCRIBE, request_serializer=encode, response_deserializer=decoder(ClusterDescription))
        return call(DescribeRequest(), timeout=10)


def test_the_control_port_answers_members_alone(protected: Protected):
    member = Authority.open(Path(protected.home("head")) / "keys" / "authority").credentials(Role.NODE, "x")
    assert _asks(protected, member).pipelines
    with pytest.raises(grpc.RpcError):
        _asks(protected, None)
    foreign = Authority.open(protected.folder / "another-authority").credentials(Role.NODE, "x")
    with pytest.raises(grpc.RpcError):
        _asks(protected, foreign)


def test_wrong_codes_are_slowed_down_and_then_replace_the_code(protected: Protected):
    """The last test here: it uses the head's patience up."""
    first = protected.code
    wrong = first[0] + ("0" if first[1] != "0" else "1") + first[2:]
    said = [protected.refused("guesser", "--code", wrong) for _ in range(5)]
    assert "wrong" in said[0]
    assert any("wait" in words or "again in" in words for words in said), said
    assert not (Path(protected.home("guesser")) / "keys").exists() or not list((Path(protected.home("guesser")) / "keys").glob("*.pem"))
    assert "a pairing was refused" in protected.cluster.head.said
    told = protected.cluster.http.get("/operator/events?kind=refused").json()["events"]
    assert any("a pairing from 127.0.0.1" in event["message"] and "was refused" in event["message"] for event in told), told
    protected.still_serves()
    shutil.rmtree(protected.home("guesser"), ignore_errors=True)
