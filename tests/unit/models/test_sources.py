"""Where models come from: references, paths, and the names that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import UnknownModel, UserError
from shoal.models.catalogue import catalogue
from shoal.models.reference import Kind, Reference
from shoal.models.removal import removal
from shoal.models.sources import find, public_name, pull


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision"),
    [
        ("smollm2-135m", "catalogue", "smollm2-135m", None),
        ("hf:org/name", "hub", "org/name", None),
        ("hf:org/na.me-1@v1.0", "hub", "org/na.me-1", "v1.0"),
        ("hf:org/name@refs/pr/1", "hub", "org/name", "refs/pr/1"),
        ("/models/x.gguf", "path", "/models/x.gguf", None),
    ],
)
def test_references(text: str, kind: Kind, name: str, revision: str | None) -> None:
    assert Reference.parse(text) == Reference(kind, name, revision)


@pytest.mark.parametrize("text", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a b/c"])
def test_hub_references_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="write hf:org/name"):
        Reference.parse(text)


def test_unknown_names_say_which_are_known() -> None:
    with pytest.raises(UnknownModel, match=r"'llama-9': known here are .*smollm2-135m"):
        pull("llama-9")
    with pytest.raises(UnknownModel):
        removal("llama-9")


def test_public_names(tmp_path: Path) -> None:
    assert public_name("/a/b/model.Q4_0.gguf") == "model.Q4_0"
    assert public_name("hf:org/name@v1") == "org/name"
    assert public_name("smollm2-135m") == "smollm2-135m"
    assert public_name(str(tmp_path)) == tmp_path.name


def test_paths(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.touch()
    assert pull(str(file)) == file == find(str(file))
    with pytest.raises(UserError, match="no such file"):
        pull(str(tmp_path / "y.gguf"))


def test_the_catalogue_holds_together() -> None:
    for entry in catalogue().values():
        assert entry.parts
        assert entry.size > 0
        assert all(len(part.sha256) == 64 for part in entry.parts)
        assert len({part.package for part in entry.parts}) == len(entry.parts)
