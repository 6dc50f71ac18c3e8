"""What is known of models outlives the head, and no file keeps it from starting."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from shoal.errors import ConfigError
from shoal.observed.models import RegisteredFile, RegisteredModel
from shoal.serving.registry_store import NAME, RegistryStore

FILE = RegisteredFile("model.gguf", 10, "ab" * 32)
MODEL = RegisteredModel("tiny", "/models/tiny.gguf", "llama", "Q4_0", 2048, 1_000_000, 600_000, ["chat"], [FILE], 2)


def again(store: RegistryStore, folder: Path) -> RegistryStore:
    """As the next head opens it."""
    store.close()
    return RegistryStore(folder)


def test_models_and_aliases_are_there_for_the_next_head(tmp_path: Path) -> None:
    store = RegistryStore(tmp_path)
    assert store.models() == {} and store.aliases() == {}
    store.record(MODEL, 1.0)
    store.set_aliases({"gpt-4o": "tiny", "best": "gpt-4o"})
    store = again(store, tmp_path)
    assert store.models() == {"tiny": MODEL} and store.aliases() == {"best": "gpt-4o", "gpt-4o": "tiny"}
    store.set_aliases({"only": "tiny"})
    assert again(store, tmp_path).aliases() == {"only": "tiny"}


def test_the_version_counts_changes_of_the_files_alone(tmp_path: Path) -> None:
    store = RegistryStore(tmp_path)
    assert store.record(MODEL, 1.0).version == 1
    assert store.record(msgspec.structs.replace(MODEL, replicas=3, context=4096), 2.0).version == 1
    other = msgspec.structs.replace(MODEL, files=[RegisteredFile("model.gguf", 10, "cd" * 32)])
    assert store.record(other, 3.0).version == 2
    assert again(store, tmp_path).record(other, 4.0).version == 2


def test_what_was_used_last_comes_first(tmp_path: Path) -> None:
    store = RegistryStore(tmp_path)
    for name, at in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        store.record(msgspec.structs.replace(MODEL, name=name), at)
    assert [*store.models()] == ["b", "c", "a"]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_file_that_was_cut_short_is_set_aside(tmp_path: Path, keep: float) -> None:
    store = RegistryStore(tmp_path)
    for i in range(200):
        store.record(msgspec.structs.replace(MODEL, name=f"m{i}"), float(i))
    store.close()
    path = tmp_path / NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    store = RegistryStore(tmp_path)
    assert store.models() == {}
    assert (tmp_path / f"{NAME}.damaged-1").read_bytes() == whole[: int(len(whole) * keep)]
    store.record(MODEL, 1.0)
    assert [*again(store, tmp_path).models()] == ["tiny"]


def test_what_is_no_database_is_set_aside_and_each_one_kept(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / NAME).write_bytes(b"this is no database, whatever it is" * 100)
        RegistryStore(tmp_path).close()
        assert (tmp_path / f"{NAME}.damaged-{number}").exists()


def test_an_entry_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    store = RegistryStore(tmp_path)
    store.record(MODEL, 1.0)
    store.close()
    with sqlite3.connect(tmp_path / NAME) as connection:
        connection.execute("INSERT INTO models VALUES ('odd', '{\"name\": 5}', 2.0)")
    connection.close()
    assert [*RegistryStore(tmp_path).models()] == ["tiny"]


@pytest.mark.parametrize(("change", "words"), [("application_id = 5", "no registry"), ("user_version = 99", "another version")])
def test_another_programs_file_is_left_alone(tmp_path: Path, change: str, words: str) -> None:
    RegistryStore(tmp_path).close()
    connection = sqlite3.connect(tmp_path / NAME)
    connection.execute(f"PRAGMA {change}")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigError, match=words):
        RegistryStore(tmp_path)
    assert (tmp_path / NAME).exists() and not (tmp_path / f"{NAME}.damaged-1").exists()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another --data"):
        RegistryStore(tmp_path / "file" / "data")
