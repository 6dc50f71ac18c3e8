"""Real shoal servers, one of which is the upstream of the others: used through the openai client, with keys and limits, while the upstream
is killed and comes back. The tests follow each other."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.api_workers import workers
from tests.support.cluster import BOUND, MODEL, Cluster, Process, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

FLAGS = ("--slots", "8", "--context", "512")
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 12, "temperature": 0}


def key_of(made: Cluster, name: str, *flags: str) -> str:
    """A new key of a server."""
    created = made.start("keys", "create", name, *flags)
    assert created.wait() == 0, created.describe()
    (key,) = re.findall(r"sk-shoal-\S+", created.said)
    return key


def client_of(made: Cluster, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{made.url}/v1", api_key=key, timeout=BOUND, max_retries=0)


def command(made: Cluster, *words: str, url: str | None = None) -> str:
    """What a command says. url: that it asks; default: of the cluster; '': it asks none."""
    done = made.start(*words, *(["--url", made.url] if url is None else []))
    assert done.wait() == 0, done.describe()
    return done.said


def upstream_state(made: Cluster) -> dict[str, Any]:
    (state,) = made.http.get("/health").json()["upstreams"]
    return state


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, str]]:
    """The upstream, and the key that it wants."""
    with cluster(tmp_path_factory.mktemp("far")) as made:
        key = key_of(made, "gateway")
        made.serve(*FLAGS)
        made.join("--name", "n0")
        made.until_ready()
        yield made, key


@pytest.fixture(scope="module")
def key_file(far: tuple[Cluster, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, key = far
    path = tmp_path_factory.mktemp("keys") / "upstreams"
    path.write_text(f"# of the servers behind this one\n{made.url}/v1 {key}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def near(far: tuple[Cluster, str], key_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A gateway without a model of its own."""
    with cluster(tmp_path_factory.mktemp("near")) as made:
        made.serve("--model", "none", "--upstream", far[0].url, "--upstream-key-file", str(key_file), "--upstream-wait", "20")
        made.until_ready()
        yield made


def test_a_gateway_without_a_model_answers_as_its_upstream_does(far: tuple[Cluster, str], near: Cluster) -> None:
    with client_of(near) as client, client_of(*far) as direct:
        assert [model.id for model in client.models.list()] == [MODEL]
        wanted = direct.chat.completions.create(model=MODEL, **ASK)
        answer = client.chat.completions.create(model=MODEL, **ASK, extra_body={"top_k": 1})
        assert answer.choices[0].message.content == wanted.choices[0].message.content
        assert answer.usage is not None and wanted.usage is not None and answer.usage.total_tokens == wanted.usage.total_tokens
        chunks = [*client.chat.completions.create(model=MODEL, **ASK, stream=True)]
        assert all(chunk.choices for chunk in chunks), "nobody asked for the usage"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted.choices[0].message.content
        asked = [*client.chat.completions.create(model=MODEL, **ASK, stream=True, stream_options={"include_usage": True})]
        assert asked[-1].usage is not None and asked[-1].usage.completion_tokens == wanted.usage.completion_tokens
        vectors = [each.embeddings.create(model=MODEL, input=["red", "blue"]) for each in (client, direct)]
        assert [each.embedding for each in vectors[0].data] == [each.embedding for each in vectors[1].data]
        response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0)
        assert response.output_text and response.usage is not None
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(model=MODEL, messages=ASK["messages"], temperature=9)
        with pytest.raises(openai.NotFoundError, match=MODEL):
            client.chat.completions.create(model="gpt-9", messages=ASK["messages"])
    message = near.http.post("/v1/messages", json={"model": MODEL, "max_tokens": 8, "messages": ASK["messages"]})
    assert message.status_code == 200 and message.json()["usage"]["output_tokens"] > 0


def test_the_upstream_is_shown_and_counted(far: tuple[Cluster, str], near: Cluster) -> None:
    url = f"{far[0].url}/v1"
    assert upstream_state(near) == {"url": url, "ready": True, "reason": "", "models": [MODEL]}
    assert near.total("upstream_requests_total", ending="served", upstream=url) >= 6
    assert near.total("upstream_ready") == 1 and near.total("upstream_tokens_total", kind="completion") > 30
    shown = command(near, "models", "served")
    assert url in shown and "serving" in shown and MODEL in shown
    (listed,) = json.loads(command(near, "models", "served", "--json"))
    assert listed == {"name": MODEL, "upstreams": [{"url": url, "state": ""}]}


def test_an_alias_stands_for_an_upstreams_model(near: Cluster) -> None:
    command(near, "models", "alias", "gpt-4o-mini", MODEL)
    with client_of(near) as client:
        until(lambda: {model.id for model in client.models.list()} == {MODEL, "gpt-4o-mini"})
        assert client.chat.completions.create(model="gpt-4o-mini", **ASK).choices[0].message.content


def test_a_stream_whose_upstream_is_killed_ends_with_an_error(far: tuple[Cluster, str], near: Cluster) -> None:
    made, _ = far
    with client_of(near) as client:
        stream = client.chat.completions.create(model=MODEL, **{**ASK, "max_tokens": 400, "stop": ["\x00"]}, stream=True)
        texts = [next(stream).choices[0].delta.content for _ in range(3)]
        made.head.signal(signal.SIGKILL)
        made.head.wait()
        with pytest.raises(openai.APIError, match="failed within its answer"):
            texts += [chunk.choices[0].delta.content for chunk in stream]
        assert any(texts)


def test_an_upstream_that_is_gone_is_told_once_and_comes_back(far: tuple[Cluster, str], near: Cluster) -> None:
    made, _ = far
    until(lambda: "cannot be reached" in upstream_state(near)["reason"], near.story)
    assert not near.answers("/health/ready")
    with client_of(near) as client:
        for _ in range(3):
            with pytest.raises(openai.InternalServerError, match=r"answers now|did not answer|takes requests now"):
                client.chat.completions.create(model=MODEL, **ASK)
        made.serve(*FLAGS)
        made.until_ready()
        until(lambda: upstream_state(near)["ready"], near.story)
        assert near.answers("/health/ready")
        assert client.chat.completions.create(model=MODEL, **ASK).choices[0].message.content
    events = near.http.get("/operator/events").json()["events"]
    assert [event["kind"] for event in events if event["kind"] in ("away", "back")] == ["back", "away", "back"]
    assert near.head.said.count("an upstream takes no requests") == 1


def test_with_workers_all_of_them_use_the_upstream_and_the_head_counts(
    far: tuple[Cluster, str], key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with cluster(tmp_path_factory.mktemp("workers")) as made:
        made.serve("--model", "none", "--upstream", far[0].url, "--upstream-key-file", str(key_file), "--api-workers", "2")
        made.until_ready()
        until(lambda: len(workers(made)) == 2, made.story)
        for _ in range(8):  # on connections of their own, which either may take
            with client_of(made) as client:
                assert client.chat.completions.create(model=MODEL, **ASK).choices[0].message.content
        until(lambda: made.total("upstream_requests_total", ending="served") == 8, made.story)
        own = {made.http.get("/v1/models").json()["data"][0]["via"][0] for _ in range(4)}
        assert len(own) == 1, "for others they are one server"
        assert f"{far[0].url}/v1" in command(made, "models", "served")


def test_keys_and_their_limits_hold_and_the_upstream_never_sees_them(
    far: tuple[Cluster, str], key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with cluster(tmp_path_factory.mktemp("limits")) as made:
        frugal = key_of(made, "frugal", "--tokens-per-minute", "40")
        made.serve("--model", "none", "--upstream", far[0].url, "--upstream-key-file", str(key_file))
        made.until_ready()
        with client_of(made, "sk-shoal-none") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model=MODEL, **ASK)
        with client_of(made, frugal) as client:
            chunks = [*client.chat.completions.create(model=MODEL, **ASK, stream=True, stream_options={"include_usage": True})]
            assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens >= 40
            with pytest.raises(openai.RateLimitError, match="tokens a minute"):
                client.chat.completions.create(model=MODEL, **ASK)

        def counted() -> int:
            (listed,) = json.loads(command(made, "keys", "list", "--json", url=""))
            return listed["prompt_tokens"] + listed["completion_tokens"]

        until(lambda: counted() == chunks[-1].usage.total_tokens, made.story, every=0.5)  # pyright: ignore[reportOptionalMemberAccess]


def test_a_model_that_both_have_is_served_by_both_and_survives_the_upstream(
    far: tuple[Cluster, str], key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, _ = far
    with cluster(tmp_path_factory.mktemp("both")) as both:
        both.up("--nodes", "1", *FLAGS, "--upstream", made.url, "--upstream-key-file", str(key_file), "--balance", "round-robin")
        both.until_ready()
        until(lambda: both.total("ready") == 1 and upstream_state(both)["ready"], both.story)
        for _ in range(6):
            assert both.texts("The capital of France is", 4, model=MODEL)
        until(lambda: both.total("upstream_requests_total", ending="served") == 3, both.story)
        assert both.total("requests_total", outcome="accepted") == 3
        made.head.signal(signal.SIGKILL)
        made.head.wait()
        for _ in range(6):
            assert both.texts("The capital of France is", 4, model=MODEL)
        assert both.answers("/health/ready")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--upstream", "other:8000"), "not the URL of a server"),
        (("--model", "none"), "needs --upstream"),
        (("--upstream", "http://a:1", "--upstream", "http://a:1/v1"), "twice"),
        (("--upstream", "http://a:1", "--upstream-key-file", "/nowhere/keys"), "no such file"),
    ],
)
def test_mistakes_are_told_in_a_line_before_anything_starts(flags: tuple[str, ...], why: str, tmp_path: Path) -> None:
    process = Process(tmp_path / "log", "serve", "--port", "0", *flags)
    assert process.wait() == 2 and why in process.said.replace("\n", " ") and "Traceback" not in process.said, process.describe()
