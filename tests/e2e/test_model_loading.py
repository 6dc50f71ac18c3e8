"""Models that come and go while a head runs: by `shoal models`, by requests, and by rest; real processes, trained weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import MODEL, Cluster, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

OTHER = "tinyllama-1.1b"
PROMPT = "The capital of France is"


def models(made: Cluster, *arguments: str, status: int = 0) -> str:
    """What `shoal models …` says of the running server."""
    command = made.start("models", *arguments, "--url", f"http://127.0.0.1:{made.port}")
    assert command.wait() == status, command.describe()
    return command.said


def names(made: Cluster) -> list[str]:
    return [card["id"] for card in made.http.get("/v1/models").json()["data"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("loading")) as one:
        one.up("--nodes", "2", "--slots", "4", "--context", "512", "--memory", "1GiB")
        one.until_ready()
        yield one


def test_a_model_is_loaded_named_asked_and_unloaded(made: Cluster) -> None:
    assert "is served by 1 of 1 copy" in models(made, "load", OTHER)
    assert names(made) == [MODEL, OTHER]
    models(made, "alias", "gpt-4o-mini", OTHER)
    models(made, "alias", "best", "gpt-4o-mini")
    answer = made.complete(PROMPT, model="best").json()
    assert answer["model"] == OTHER and answer["choices"][0]["text"] == made.texts(PROMPT, model=OTHER)[0]
    shown = models(made, "served")
    assert MODEL in shown and "gpt-4o-mini" in shown, shown
    assert OTHER in models(made, "unload", OTHER)
    told = models(made, "show", "best")
    assert f"{OTHER} " in told and "version 1, llama" in told and "chat" in told and ".gguf" in told, told
    assert names(made) == [MODEL]
    gone = made.complete(PROMPT, model=OTHER)
    assert gone.status_code == 404 and MODEL in gone.text, gone.text
    assert made.texts(PROMPT), "the other one serves on"


def test_mistakes_are_told_in_a_line(made: Cluster) -> None:
    for arguments, words in (
        (("load", MODEL), "served already"),
        (("load", "no-such-model"), "unknown model"),
        (("unload", "no-such-model"), MODEL),
        (("alias", "gpt-4", "no-such-model"), "no model here"),
        (("alias", MODEL, MODEL), "name of a model"),
        (("alias", "never-set"), "there is no alias"),
    ):
        said = models(made, *arguments, status=2)
        assert words in said and "Traceback" not in said, said


def test_the_number_of_copies_changes_under_a_stream(made: Cluster) -> None:
    wanted = made.texts(PROMPT, 200)
    command = made.start("models", "load", MODEL, "--replicas", "2", "--url", f"http://127.0.0.1:{made.port}")
    assert made.texts(PROMPT, 200) == wanted
    assert command.wait() == 0 and "2 of 2 copies" in command.said, command.describe()
    assert made.total("ready") == 2
    assert made.texts(PROMPT, 200) == wanted
    assert "1 of 1 copy" in models(made, "load", MODEL, "--replicas", "1")
    assert made.texts(PROMPT, 200) == wanted


def test_requests_load_models_and_rest_unloads_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both together have no room."""
    with cluster(tmp_path_factory.mktemp("demand")) as made:
        made.up("--nodes", "2", "--slots", "4", "--context", "512", "--memory", "600MiB", "--on-demand", "--idle", "20")
        made.until_ready()
        assert OTHER in names(made)
        assert made.texts(PROMPT, model=OTHER)
        refused = made.complete(PROMPT, model="qwen2.5-coder-1.5b")
        assert refused.status_code == 503 and "not enough memory" in refused.text, refused.text
        assert made.texts(PROMPT, model=MODEL)
        until(lambda: "no model is loaded" in models(made, "served"), made.story, every=1)
        assert made.http.get("/health/ready").status_code == 200, "a request would load it again"
        assert made.texts(PROMPT, model=MODEL)
