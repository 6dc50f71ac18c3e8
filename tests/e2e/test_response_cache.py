"""Answers that are given again: real processes, trained weights, OpenAI's client.

One node serves three heads, one after another: the first two without workers, the last with two. The tests follow each other.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.support.api_workers import serves, workers
from tests.support.cluster import BOUND, Cluster, cluster, until
from tests.support.response_cache import mark

pytestmark = [pytest.mark.real, pytest.mark.slow]

FLAGS = ("--slots", "8", "--context", "512", "--response-cache", "16MiB", "--state", "none")
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Name three colours."}], "temperature": 0, "max_tokens": 24}


def ask(client: openai.OpenAI, **fields: Any) -> tuple[str | None, str]:
    """Whether it was a hit, and the text of a stream."""
    with client.chat.completions.with_streaming_response.create(model="smollm2-135m", stream=True, **{**QUESTION, **fields}) as answer:
        found = answer.headers.get("x-shoal-cache")
        chunks = list(answer.parse())
    assert len(chunks) > 3
    return found, "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def whole(client: openai.OpenAI, **fields: Any) -> tuple[str | None, str]:
    answer = client.chat.completions.with_raw_response.create(model="smollm2-135m", **{**QUESTION, **fields})
    return answer.headers.get("x-shoal-cache"), str(answer.parse().choices[0].message.content)


def restart(made: Cluster, *flags: str) -> None:
    made.head.signal(signal.SIGKILL)
    made.head.wait()
    made.http.close()
    made.http = httpx.Client(base_url=made.url, timeout=BOUND, trust_env=False)
    made.replace_head(made.serve(*FLAGS, *flags))
    made.until_ready()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cached")) as made:
        made.serve(*FLAGS)
        made.join("--name", "n0")
        made.until_ready()
        yield made


@pytest.fixture(scope="module")
def right(made: Cluster, client: openai.OpenAI) -> str:
    """What the model says, by chance of none."""
    found, text = ask(client, extra_headers={"Cache-Control": "no-store"})
    assert found == "miss"
    return text


def counted(made: Cluster) -> tuple[float, ...]:
    """Tokens that nodes have sampled, steps that they have run, hits and misses, when the steps in flight have ended."""
    names = ("generated_tokens_total", "step_flight_seconds_count", "response_cache_hits_total", "response_cache_misses_total")
    found = [made.metrics(*names)]

    def still() -> bool:
        found.append(made.metrics(*names))
        return len(found) > 3 and found[-3:] == found[-1:] * 3  # the step after a last token ends a little later than its answer

    until(still, lambda: str(found), every=0.3)
    return tuple(found[-1])


def test_no_node_runs_a_step_for_what_was_asked_before(made: Cluster, client: openai.OpenAI, right: str) -> None:
    assert ask(client) == ("miss", right)
    tokens, steps, hits, misses = counted(made)
    assert ask(client) == ("hit", right)
    assert whole(client) == ("hit", right)
    assert counted(made) == (tokens, steps, hits + 2, misses)
    assert made.metric("response_cache_bytes") > 0
    assert whole(client, max_tokens=8)[0] == "miss"
    assert counted(made)[0] == tokens + 8


def test_a_seed_s_answer_is_given_again(made: Cluster, client: openai.OpenAI) -> None:
    first, second, other = (whole(client, temperature=1, seed=seed) for seed in (1, 1, 2))
    assert (first[0], second[0], other[0]) == ("miss", "hit", "miss")
    assert first[1] == second[1] != other[1]
    assert whole(client, temperature=1)[0] is None


def test_only_a_kept_answer_is_a_gateway_s_timeout(made: Cluster, client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="not kept") as raised:
        whole(client, max_tokens=9, extra_headers={"Cache-Control": "only-if-cached"})
    assert (raised.value.status_code, raised.value.code) == (504, "not_cached")


def test_a_head_that_is_started_again_has_its_answers(made: Cluster, client: openai.OpenAI, right: str) -> None:
    restart(made)
    assert ask(client) == ("hit", right)
    assert counted(made) == (0, 0, 1, 0)
    assert made.metric("response_cache_bytes") > 0


def test_workers_share_their_answers(made: Cluster, right: str) -> None:
    restart(made, "--api-workers", "2")
    until(lambda: len(workers(made)) == 2, made.story)
    clients: list[httpx.Client] = []
    served: set[int] = set()
    while len(served) < 2:
        assert len(clients) < 200, "one worker has all clients"
        clients.append(httpx.Client(base_url=made.url, timeout=BOUND, trust_env=False))
        answer = clients[-1].post("/v1/chat/completions", json={**QUESTION, "max_tokens": 11})
        port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
        (process,) = (worker.pid for worker in workers(made) if serves(worker, port))
        assert mark(answer) == ("hit" if clients[1:] else "miss")
        served.add(process)
        again = clients[-1].post("/v1/chat/completions", json=QUESTION)
        assert (mark(again), again.json()["choices"][0]["message"]["content"]) == ("hit", right)
    until(lambda: made.metric("response_cache_hits_total") == 2 * len(clients) - 1)
    assert made.metrics("response_cache_misses_total", "generated_tokens_total") == [1, 11]
    for client in clients:
        client.close()


def test_keys_do_not_share_theirs(made: Cluster, right: str) -> None:
    """The last test of this cluster: it needs a key from now on."""
    tokens: list[str] = []
    for name in ("alice", "bob"):
        created = made.start("keys", "create", name)
        assert created.wait() == 0, created.describe()
        tokens.append(re.findall(r"sk-shoal-\S+", created.said)[0])
    until(lambda: made.http.get("/v1/models").status_code == 401, made.story)
    clients = [openai.OpenAI(base_url=f"{made.url}/v1", api_key=token, timeout=BOUND, max_retries=0) for token in tokens]
    found = [until(lambda c=client: ask(c) if c.models.list() else None) for client in clients for _ in range(2)]
    assert found == [("miss", right), ("hit", right)] * 2
    for client in clients:
        client.close()
