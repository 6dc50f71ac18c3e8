"""What a model's name means, and that a reference that was written is read as what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.errors import ShoalError, UnknownModel, UserError
from shoal.models import sources
from shoal.models.reference import Reference, ambiguity
from tests.support.stores import ollama_store

WORD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True).filter(lambda s: ".." not in s)
TAG = st.from_regex(r"[A-Z0-9_]{1,8}", fullmatch=True) | st.from_regex(r"([a-z]{1,5}/)?[a-zA-Z0-9 -]{1,9}\.gguf", fullmatch=True)


@given(WORD, WORD, st.none() | TAG, st.none() | st.sampled_from(["main", "v1.0", "refs/pr/1", "a" * 40]))
def test_a_reference_of_the_hub_is_read_as_it_was_written(org: str, name: str, tag: str | None, revision: str | None) -> None:
    reference = Reference("hub", f"{org}/{name}", revision, tag)
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(str(reference).replace("hf:", "hf.co/", 1)) == reference
    assert Reference.parse(str(reference).replace("hf:", "https://huggingface.co/", 1)) == reference


@given(st.text(max_size=40))
@example("/\0")
@example("~\0")
@example("a\0.gguf")
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except UserError:
        return
    assert reference.name
    assert ".." not in (reference.tag or "").split("/")


@pytest.mark.parametrize(
    "text", ["hf.co/\n", "hf.co/org/name/blob/main/../../x.gguf", "https://huggingface.co/org/name/resolve/main/a/../x.gguf"]
)
def test_addresses_that_lead_elsewhere_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a hub reference"):
        Reference.parse(text)


@pytest.mark.parametrize("text", ["/\0", "~\0", "a\0.gguf"])
def test_what_no_path_can_be_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a path: .*null"):
        Reference.parse(text)


def test_links_that_lead_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match=f"{tmp_path}/a"):
        sources.pull(str(tmp_path / "a"), directory=tmp_path)


@given(st.sampled_from(["hf:", "hf.co/", "ollama:", "lmstudio:"]), st.text(max_size=40))
def test_what_follows_a_prefix_leads_nowhere_but_down(prefix: str, text: str) -> None:
    try:
        reference = Reference.parse(prefix + text)
    except UserError:
        return
    assert reference.kind == {"h": "hub", "o": "ollama", "l": "lmstudio"}[prefix[0]]
    assert all(part not in ("", ".", "..") for part in (reference.tag or "x").split("/"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smollm2-135m", Reference("catalogue", "smollm2-135m")),
        ("org/name", Reference("hub", "org/name")),
        ("org/name:Q4_K_M", Reference("hub", "org/name", None, "Q4_K_M")),
        ("org/name:sub/model.gguf@v1", Reference("hub", "org/name", "v1", "sub/model.gguf")),
        ("hf.co/org/name:q8_0", Reference("hub", "org/name", None, "q8_0")),
        ("HF.co/org/name", Reference("hub", "org/name")),
        ("https://huggingface.co/org/name/", Reference("hub", "org/name")),
        ("https://huggingface.co/org/name/tree/main", Reference("hub", "org/name")),
        ("https://huggingface.co/org/name/blob/v1/a/b.gguf?download=true", Reference("hub", "org/name", "v1", "a/b.gguf")),
        ("ollama:llama3.2:1b", Reference("ollama", "llama3.2:1b")),
        ("ollama:llama3.2:latest", Reference("ollama", "llama3.2")),
        ("ollama:registry.ollama.ai/library/llama3.2", Reference("ollama", "llama3.2")),
        ("ollama:hf.co/org/name:Q4_K_M", Reference("ollama", "hf.co/org/name:Q4_K_M")),
        ("lmstudio:pub/repo", Reference("lmstudio", "pub/repo")),
        ("lmstudio:pub/repo/file.gguf", Reference("lmstudio", "pub/repo", None, "file.gguf")),
        ("lmstudio:pub/repo:Q8_0", Reference("lmstudio", "pub/repo", None, "Q8_0")),
    ],
)
def test_references(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["hf:a/b:../x.gguf", "hf:a/b:/x.gguf", "hf:a/b@../../x", "hf:a/b:x@", "ollama:../x", "ollama:", "lmstudio:pub", "lmstudio:a/b/../c"],
)
def test_names_with_a_prefix_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="write "):
        Reference.parse(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama_store(tmp_path / "ollama", {"llama3.2:1b": b"GGUF", "smollm2-135m": b"GGUF"})))
    return tmp_path


def test_a_path_that_is_there_comes_before_the_hub_and_that_is_said(here: Path) -> None:
    (here / "org" / "name").mkdir(parents=True)
    assert Reference.parse("org/name") == Reference("path", str(here / "org" / "name"))
    assert ambiguity("org/name") == "'org/name' is taken as the file or folder of that name; the hub's repository is written hf:org/name"
    assert Reference.parse("hf:org/name").kind == "hub"
    assert ambiguity("hf:org/name") == ambiguity("org/other") == ""


def test_ollama_s_models_go_by_their_names_where_the_catalogue_has_no_such(here: Path) -> None:
    assert Reference.parse("LLama3.2:1b") == Reference("ollama", "llama3.2:1b")
    assert Reference.parse("smollm2-135m").kind == "catalogue"
    assert "ollama:smollm2-135m" in ambiguity("smollm2-135m")


def test_a_misspelt_name_is_guessed_from_the_catalogue_and_the_store(here: Path) -> None:
    with pytest.raises(UnknownModel, match=r"did you mean 'llama3\.2:1b'"):
        Reference.parse("lama3.2:1b")


def test_titles() -> None:
    assert [Reference.parse(t).title for t in ("hf:a/b@v1", "hf:a/b:Q8_0", "/x/m-00001-of-00002.gguf", "ollama:x:latest")] == [
        "a/b",
        "a/b:Q8_0",
        "m",
        "x",
    ]


def test_manifests_that_are_none_are_passed_over(here: Path) -> None:
    broken = here / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "broken"
    broken.mkdir()
    (broken / "latest").write_text(
        json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../x", "size": 1}]})
    )
    with pytest.raises(ShoalError):
        Reference.parse("broken")
