"""Embeddings, and the model in Ollama's lists."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.text.reasoning import THINK
from tests.support.app import app_of
from tests.support.engine import FakeEngine, able
from tests.support.http import fetch
from tests.support.ollama_api import ask, refused


def test_embeddings() -> None:
    got = ask(able(), "/api/embed", input=["Hello", "b"]).json()
    assert (got["model"], got["prompt_eval_count"], len(got["embeddings"])) == ("fake", 6, 2)
    assert got["total_duration"] > 0 and [round(x, 3) for x in got["embeddings"][1]] == [1, 0, 0, 0]
    assert ask(able(), "/api/embed", input="b").json()["embeddings"] == [got["embeddings"][1]]
    assert ask(able(), "/api/embed", input=[]).json()["embeddings"] == []
    assert ask(able(), "/api/embeddings", prompt="b").json() == {"embedding": got["embeddings"][1]}


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/api/embed", {"input": "a"}, "accepted"),
        ("/api/embed", {"input": []}, "accepted"),
        ("/api/embed", {"input": 1}, "400"),
        ("/api/embed", {"input": "a", "options": {"odd": 1}}, "400"),
        ("/api/embed", {"input": "a", "model": "other"}, "404"),
        ("/api/embeddings", {"prompt": "a", "truncate": True}, "400"),
    ],
)
def test_embeddings_are_counted_refused_ones_too(path: str, fields: dict[str, Any], status: str) -> None:
    asked = able()
    ask(asked, path, **fields)
    assert [(endpoint, outcome) for endpoint, outcome, _ in asked.observed] == [("ollama_embed", status)]


def test_a_text_that_is_too_long_is_cut_unless_it_must_not_be() -> None:
    assert ask(able(), "/api/embed", input="x" * 2000).json()["prompt_eval_count"] == 1000
    assert "tokens" in refused(ask(able(), "/api/embed", input="x" * 2000, truncate=False), 400)


def test_the_model_in_its_lists() -> None:
    app = app_of(able())
    (tag,) = fetch(app, "GET", "/api/tags").json()["models"]
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "135.00M",
        "quantization_level": "Q4_K",
    }
    assert (tag["name"], tag["model"], tag["size"], tag["details"]) == ("fake:latest", "fake:latest", 98_000_000, details)
    (running,) = fetch(app, "GET", "/api/ps").json()["models"]
    assert (running["digest"], running["context_length"], running["size_vram"]) == (tag["digest"], 1000, 0)
    shown = fetch(app, "POST", "/api/show", json={"model": "fake:latest"}).json()
    assert shown["details"] == details and shown["capabilities"] == ["completion", "tools", "embedding"]
    info = shown["model_info"]
    assert (info["general.architecture"], info["llama.context_length"], info["llama.embedding_length"]) == ("llama", 1000, 4)
    assert info["general.parameter_count"] == 135_000_000
    assert "thinking" in fetch(app_of(FakeEngine(reasoning=THINK)), "POST", "/api/show", json={"name": "fake"}).json()["capabilities"]


def test_whoever_looks_for_a_server_finds_one() -> None:
    app = app_of(able())
    assert fetch(app, "HEAD", "/").status_code == 200
    assert fetch(app, "GET", "/").text == "shoal is running"
    assert [int(part) for part in fetch(app, "GET", "/api/version").json()["version"].split(".")] >= [0, 6, 4]
