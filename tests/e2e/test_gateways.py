"""The API served from other machines: a protected head, a node and two gateways as real processes, each with a home of its own.

The tests follow each other; those at the end leave the API with keys.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from shoal import __version__
from shoal.security.authority import Authority
from shoal.security.certificates import Role, server_name
from tests.support.cluster import Cluster, until
from tests.support.gateways import Fleet, Gateway, client, fleet, streamed
from tests.support.restarts import BODIES, Client, said

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("gateways"), smollm2) as there:
        yield there


@pytest.fixture(scope="module")
def made(there: Fleet) -> Cluster:
    return there.made


@pytest.fixture(scope="module")
def answers(made: Cluster) -> list[Any]:
    """What the head's own API says."""
    return said(made)


@pytest.fixture(scope="module")
def two(there: Fleet, answers: list[Any]) -> list[Gateway]:
    return [there.paired("g1"), there.paired("g2")]


def as_made(gateway: Gateway) -> Any:
    """A gateway where a Cluster's `http` and `texts` are used."""
    return gateway


def test_a_gateway_without_a_code_is_told_what_to_do(there: Fleet) -> None:
    assert "--code CODE" in there.refused("stranger")


def test_clients_stream_the_same_everywhere(made: Cluster, two: list[Gateway], answers: list[Any]) -> None:
    right = streamed(made.url)
    assert right
    assert [streamed(gateway.url) for gateway in two] == [right, right]
    assert [said(as_made(gateway)) for gateway in two] == [answers, answers]


def test_a_gateway_has_the_tokenizer_and_no_weights(two: list[Gateway], smollm2: Path) -> None:
    for gateway in two:
        kept = [path for path in gateway.home.rglob("*") if path.is_file()]
        assert [path.name for path in kept if path.suffix == ".gguf"] == ["model.gguf"]
        assert sum(path.stat().st_size for path in kept) < smollm2.stat().st_size / 10


def test_models_metrics_and_the_cluster_are_the_heads(there: Fleet, made: Cluster, two: list[Gateway]) -> None:
    def names(http: httpx.Client) -> set[str]:
        return set(re.findall(r"^(shoal_\w+)", http.get("/metrics").text, re.MULTILINE))

    for gateway in two:
        assert gateway.http.get("/v1/models").json() == made.http.get("/v1/models").json()
        assert names(gateway.http) == names(made.http)
        shown = gateway.http.get("/operator/cluster")
        assert shown.status_code == 200 and '"n0"' in shown.text, shown.text
        assert "<title>" in gateway.http.get("/console/").text
        assert gateway.http.post("/operator/invitation").json()["code"] == there.code
    before = made.metric("generated_tokens_total")
    two[0].texts("Two and two are", 5)
    assert made.metric("generated_tokens_total") == before + 5


def test_files_and_batches_are_refused_with_the_heads_address(made: Cluster, two: list[Gateway]) -> None:
    with client(two[0].url) as asking, pytest.raises(openai.APIStatusError) as caught:
        asking.files.list()
    assert caught.value.status_code == 501
    assert made.url in str(caught.value)
    assert two[0].http.get("/v1/batches/batch_1").status_code == 501


def test_responses_are_kept_at_the_head(made: Cluster, two: list[Gateway]) -> None:
    asked: dict[str, Any] = {"model": "smollm2-135m", "max_output_tokens": 8, "temperature": 0}
    with client(made.url) as head, client(two[0].url) as one, client(two[1].url) as other:
        first = one.responses.create(input="My name is Ada.", **asked)
        assert [place.responses.retrieve(first.id).output_text for place in (head, one, other)] == [first.output_text] * 3
        second = other.responses.create(input="What is it?", previous_response_id=first.id, **asked)
        assert head.responses.retrieve(second.id).previous_response_id == first.id
        other.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            head.responses.retrieve(first.id)


@pytest.mark.parametrize("role", [Role.NODE, Role.HEAD])
def test_another_certificate_makes_no_gateway(there: Fleet, role: Role) -> None:
    authority = Authority.open(there.home("head") / "keys" / "authority")
    credentials = authority.credentials(role, "x")
    credentials.save(there.home(f"a-{role.value}") / "keys" / f"gateway-127.0.0.1-{there.made.control_port}.pem")
    assert f"holds a {role.value}'s certificate" in there.refused(f"a-{role.value}")
    with (
        socket.create_connection(("127.0.0.1", there.gateway_port), 10) as raw,
        credentials.client_context().wrap_socket(raw, server_hostname=server_name(Role.HEAD)) as tls,
    ):
        tls.sendall(f"shoal gateway {__version__}\n".encode())
        assert tls.recv(4096).startswith(f"refused its certificate is a {role.value}'s".encode())
        assert tls.recv(4096) == b""


def test_the_gateway_port_speaks_to_nobody_without_a_certificate(there: Fleet) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    heard = b""
    with (
        socket.create_connection(("127.0.0.1", there.gateway_port), 10) as raw,
        contextlib.suppress(ssl.SSLError, ConnectionError),
        context.wrap_socket(raw) as tls,
    ):
        tls.sendall(f"shoal gateway {__version__}\n".encode())
        heard = tls.recv(4096)
    assert heard == b""


def test_another_version_is_told_so(there: Fleet) -> None:
    credentials = Authority.open(there.home("head") / "keys" / "authority").credentials(Role.GATEWAY, "x")
    with (
        socket.create_connection(("127.0.0.1", there.gateway_port), 10) as raw,
        credentials.client_context().wrap_socket(raw, server_hostname=server_name(Role.HEAD)) as tls,
    ):
        tls.sendall(b"shoal gateway 0.0.1\n")
        assert tls.recv(4096) == f"welcome {__version__}\n".encode()
        assert tls.recv(4096) == b""


def test_a_killed_gateways_named_streams_go_on_at_the_other(there: Fleet, two: list[Gateway], answers: list[Any]) -> None:
    dying, other = two
    clients = [Client(as_made(dying), i, "moves") for i in range(len(BODIES))]
    for each in clients:
        each.begin()
    dying.kill()
    for each in clients:
        each.lose()
        each._made = as_made(other)
        each.go_on()
    for each, right in zip(clients, answers, strict=True):
        assert [each.texts[i] for i in range(len(right))] == right
        assert each.done
        assert len(set(each.ids)) == len(each.ids), "an event came twice"
    two[0] = there.gateway("g1")
    two[0].until_ready()


def test_a_killed_gateways_other_streams_leave_no_slot_behind(there: Fleet, two: list[Gateway]) -> None:
    body = {"prompt": "A very long story about the sea:", "max_tokens": 450, "temperature": 0, "ignore_eos": True, "stream": True}
    with two[0].http.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()  # kept: the connection closes with it
        next(lines)
        until(lambda: there.made.metric("sequences_running") == 1, there.made.story)
        two[0].process.popen.kill()
        until(lambda: there.made.metric("sequences_running") == 0, there.made.story)
    two[0].process.wait()
    two[0] = there.gateway("g1")
    two[0].until_ready()
    there.made.until_idle()


def test_the_head_is_killed_and_comes_back(there: Fleet, two: list[Gateway], answers: list[Any]) -> None:
    clients = [Client(as_made(two[i % 2]), i, "over-heads") for i in range(len(BODIES))]
    for each in clients:
        each.begin()
    there.kill_head()
    for each in clients:
        each.lose()
    for gateway in two:
        until(lambda gateway=gateway: "no head" in gateway.http.get("/health/ready").json()["reason"], gateway.process.describe)
        with pytest.raises(openai.APIStatusError) as caught:
            streamed(gateway.url)
        assert caught.value.status_code == 503
        assert "this gateway has no head" in str(caught.value)
        assert gateway.http.get("/health/live").status_code == 200
    there.serve()
    for gateway in two:
        gateway.until_ready()
    for each in clients:
        each.go_on()
    assert [[each.texts[i] for i in range(len(each.texts))] for each in clients] == answers
    assert all(each.done for each in clients)


def test_of_several_addresses_the_one_with_a_head_is_used(there: Fleet, answers: list[Any]) -> None:
    shutil.copytree(there.home("g1") / "keys", there.home("g3") / "keys")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gateway = there.gateway("g3", f"127.0.0.1:{nobody.getsockname()[1]}", there.address, "--response-cache", "1MiB")
        gateway.until_ready()
        assert said(as_made(gateway)) == answers
        body = {"prompt": "Once again:", "max_tokens": 4, "temperature": 0}
        found = [gateway.http.post("/v1/completions", json=body) for _ in range(2)]
        assert [answer.headers["x-shoal-cache"] for answer in found] == ["miss", "hit"]
        assert (gateway.home / "gateway" / "response-cache.sqlite").exists()
    gateway.process.end()


def test_keys_of_the_head_count_at_once(there: Fleet, two: list[Gateway]) -> None:
    """From here on the API has keys."""
    token = re.search(r"sk-shoal-\S+", there.keys("create", "alice", "--concurrency", "2"))
    assert token is not None
    for gateway in two:
        until(lambda gateway=gateway: gateway.http.get("/v1/models").status_code == 401, gateway.process.describe)
        assert streamed(gateway.url, token[0])
    until(lambda: re.search(r"alice.*\b2\b", there.keys("list")), lambda: there.keys("list"))
    for gateway in two:
        assert not any(token[0].encode() in path.read_bytes() for path in gateway.home.rglob("*") if path.is_file())
    there.keys("revoke", "alice")
    bearer = {"Authorization": f"Bearer {token[0]}"}
    for gateway in two:
        until(lambda gateway=gateway: gateway.http.get("/v1/models", headers=bearer).status_code == 401, gateway.process.describe)


def test_a_gateway_that_is_told_to_end_ends(two: list[Gateway]) -> None:
    """The last test of this cluster."""
    for gateway in two:
        gateway.process.popen.terminate()
        assert gateway.process.wait() == 0
