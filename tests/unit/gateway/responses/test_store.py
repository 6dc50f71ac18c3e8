"""Responses on the disk: found again, by their owner alone, and never more of them than was allowed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import CapacityError, IdTaken, InvalidRequest, UnknownAnswer
from shoal.gateway.endpoints.responses import store as module
from shoal.gateway.endpoints.responses.store import Bounds, ResponseStore

MANY = Bounds(responses=1000, bytes=1 << 20, seconds=1000.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def response(id: str, previous: str | None = None, status: str = "in_progress", text: str = "") -> dict[str, Any]:
    return {"id": id, "status": status, "previous_response_id": previous, "output": [{"id": f"msg_{id}_0", "text": text}]}


def keep(store: ResponseStore, id: str, previous: str | None = None, text: str = "", owner: str = "") -> None:
    store.begin(response(id, previous), [{"id": f"in_{id}_0"}], owner)
    store.end(response(id, previous, "completed", text))


def there(store: ResponseStore, *ids: str) -> list[str]:
    """Those of the ids that are kept; looking at them is no use of them."""
    with store._transaction() as connection:
        kept = {row[0] for row in connection.execute("SELECT id FROM responses")}
    return [id for id in ids if id in kept]


def test_what_was_kept_is_found_again(tmp_path: Path):
    keep(ResponseStore(tmp_path, MANY, Clock()), "a", text="Hello")
    kept = ResponseStore(tmp_path, MANY, Clock()).get("a")
    assert kept.response == response("a", None, "completed", "Hello")
    assert kept.input == [{"id": "in_a_0"}]


def test_only_its_owner_finds_a_response(tmp_path: Path):
    store = ResponseStore(tmp_path, MANY, Clock())
    keep(store, "a", owner="key-1")
    for use in (store.get, store.delete):
        with pytest.raises(UnknownAnswer):
            use("a", "key-2")
    with pytest.raises(InvalidRequest):
        store.chain("a", "")
    assert store.get("a", "key-1").response["id"] == "a"


def test_a_chain_is_the_conversation_from_its_beginning(tmp_path: Path):
    store = ResponseStore(tmp_path, MANY, Clock())
    for id, previous in (("a", None), ("b", "a"), ("other", "a"), ("c", "b")):
        keep(store, id, previous)
    assert [kept.response["id"] for kept in store.chain("c")] == ["a", "b", "c"]


def test_a_conversation_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_CONVERSATION", 1000)
    store = ResponseStore(tmp_path, MANY, Clock())
    keep(store, "a", text="x" * 600)
    keep(store, "b", "a", text="x" * 600)
    assert len(store.chain("a")) == 1
    with pytest.raises(InvalidRequest, match="begin a new one"):
        store.chain("b")


def test_what_was_longest_unused_goes_first(tmp_path: Path):
    store = ResponseStore(tmp_path, Bounds(3, 1 << 20, 1e9), Clock())
    for id in "abc":
        keep(store, id)
    store.get("a")
    keep(store, "d")
    assert there(store, *"abcd") == ["a", "c", "d"]


def test_using_a_conversation_uses_its_beginning(tmp_path: Path):
    store = ResponseStore(tmp_path, Bounds(3, 1 << 20, 1e9), Clock())
    keep(store, "a")
    keep(store, "b", "a")
    keep(store, "x")
    store.chain("b")
    keep(store, "y")
    assert there(store, *"abxy") == ["a", "b", "y"]


def test_the_bytes_are_bounded_and_one_that_is_too_large_pushes_nobody_out(tmp_path: Path):
    store = ResponseStore(tmp_path, Bounds(100, 2000, 1e9), Clock())
    for id in "abc":
        keep(store, id, text="x" * 600)
    assert there(store, *"abc") == ["b", "c"]
    keep(store, "huge", text="x" * 3000)
    assert there(store, "b", "c", "huge") == ["b", "c"]


def test_characters_count_as_their_bytes(tmp_path: Path):
    store = ResponseStore(tmp_path, Bounds(100, 2000, 1e9), Clock())
    keep(store, "a", text="€" * 700)
    assert there(store, "a") == []


def test_an_old_response_is_forgotten(tmp_path: Path):
    clock = Clock()
    store = ResponseStore(tmp_path, Bounds(100, 1 << 20, 50.0), clock)
    keep(store, "a")
    clock.now += 60
    with pytest.raises(UnknownAnswer):
        store.get("a")
    keep(store, "b")
    assert there(store, "a", "b") == ["b"]


def test_an_id_is_given_once(tmp_path: Path):
    store = ResponseStore(tmp_path, MANY, Clock())
    keep(store, "a", text="first")
    with pytest.raises(IdTaken):
        store.begin(response("a"), [])
    assert store.get("a").response["output"][0]["text"] == "first"


def test_one_deleted_while_it_ran_does_not_come_back(tmp_path: Path):
    store = ResponseStore(tmp_path, MANY, Clock())
    store.begin(response("a"), [])
    store.delete("a")
    store.end(response("a", None, "completed"))
    with pytest.raises(UnknownAnswer):
        store.get("a")


@pytest.mark.slow
def test_one_whose_process_is_gone_has_failed(tmp_path: Path):
    code = f"""
        from pathlib import Path
        from shoal.gateway.endpoints.responses.store import Bounds, ResponseStore
        store = ResponseStore(Path({str(tmp_path)!r}), Bounds(9, 1 << 20, 1e9))
        store.begin({response("a")!r}, [])
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
    store = ResponseStore(tmp_path, Bounds(9, 1 << 20, 1e9))
    kept = store.get("a").response
    assert kept["status"] == "failed" and "was ended" in kept["error"]["message"]
    store.begin(response("b"), [])
    assert store.get("b").response["status"] == "in_progress"


def test_one_that_is_over_is_not_adopted(tmp_path: Path):
    store = ResponseStore(tmp_path, MANY)
    keep(store, "a")
    store.adopt("a")
    assert store.get("a").response["status"] == "completed"
    with store._transaction() as connection:
        assert connection.execute("SELECT runner FROM responses").fetchall() == [("",)]


@pytest.mark.slow
def test_several_processes_keep_in_one_file(tmp_path: Path):
    code = f"""
        import sys
        from pathlib import Path
        from shoal.gateway.endpoints.responses.store import Bounds, ResponseStore
        store = ResponseStore(Path({str(tmp_path)!r}), Bounds(1000, 1 << 24, 1e9))
        for i in range(25):
            r = {{"id": f"{{sys.argv[1]}}-{{i}}", "status": "in_progress", "previous_response_id": None, "output": []}}
            store.begin(r, [])
            store.end(r | {{"status": "completed"}})
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    running = [subprocess.Popen([*command, str(i)]) for i in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    store = ResponseStore(tmp_path, Bounds(1000, 1 << 24, 1e9))
    assert all(store.get(f"{i}-{n}").response["status"] == "completed" for i in range(4) for n in range(25))


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_nobody_else_may_read_the_file(tmp_path: Path):
    store = ResponseStore(tmp_path / "new", MANY, Clock())
    keep(store, "a")
    for path in (tmp_path / "new").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_file_that_is_no_database_is_an_error_that_names_it(tmp_path: Path):
    (tmp_path / "responses.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(CapacityError, match=r"responses\.sqlite"):
        ResponseStore(tmp_path, MANY).get("a")


USES = st.lists(st.tuples(st.sampled_from(["keep", "get", "delete"]), st.integers(0, 11)), max_size=30)


@pytest.mark.slow
@given(uses=USES, most=st.integers(0, 5))
def test_whatever_is_done_the_last_used_are_there(tmp_path_factory: pytest.TempPathFactory, uses: list[tuple[str, int]], most: int):
    store = ResponseStore(tmp_path_factory.mktemp("store"), Bounds(most, 1 << 20, 1e9), Clock())
    model: list[str] = []
    """The longest unused first."""
    for use, number in uses:
        id = str(number)
        if use == "keep" and id not in model:
            keep(store, id)
            model = [*model, id][-most:] if most else []
        elif use != "keep" and id in model:
            (store.get if use == "get" else store.delete)(id)
            model.remove(id)
            model += [id] if use == "get" else []
    assert there(store, *model) == model and len(there(store, *map(str, range(12)))) == len(model)
