"""Files, over HTTP in this process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from time import time as now
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import ApiSettings
from shoal.errors import ConfigError, InvalidRequest
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.endpoints.database import Database
from shoal.gateway.endpoints.files.multipart import Field, FileBegun, FileData, Multipart
from shoal.gateway.endpoints.files.store import File, FileStore
from tests.support.app import app_of
from tests.support.batches import Api, jsonl, line, served
from tests.support.engine import FakeEngine
from tests.support.http import eventually


def run(data: Path, what: Callable[[Api], Awaitable[None]], **options: Any) -> None:
    async def go() -> None:
        async with served(FakeEngine(), data, works=False, **options) as api:
            await what(api)

    asyncio.run(go())


def refused(answer: Any, status: int, param: str) -> str:
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    return str(answer.json()["error"]["message"])


def test_a_file_is_what_was_sent(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        content = os.urandom(300_000)
        made = (await api.upload(content, "a b.jsonl")).json()
        assert (made["object"], made["bytes"], made["filename"], made["purpose"]) == ("file", 300_000, "a b.jsonl", "batch")
        assert (await api.http.get(f"/v1/files/{made['id']}")).json() == made
        assert (await api.http.get(f"/v1/files/{made['id']}/content")).content == content

    run(tmp_path, go)


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        made = (await api.upload(b"")).json()
        assert (await api.http.get(f"/v1/files/{made['id']}/content")).content == b""

    run(tmp_path, go)


def test_a_deleted_file_is_gone_from_the_disk_too(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        id = (await api.upload(b"x")).json()["id"]
        assert (await api.http.delete(f"/v1/files/{id}")).json() == {"id": id, "object": "file", "deleted": True}
        for answer in (await api.http.get(f"/v1/files/{id}"), await api.http.delete(f"/v1/files/{id}")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
        assert list((tmp_path / "files").iterdir()) == []

    run(tmp_path, go)


def test_a_file_that_a_batch_reads_is_not_deleted(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        id = (await api.upload(jsonl([line("a")]))).json()["id"]
        await api.create(id)
        refused(await api.http.delete(f"/v1/files/{id}"), 409, "file_id")

    run(tmp_path, go)


@pytest.mark.parametrize("id", ["..%2f..%2fbatches.sqlite", "%2e%2e", "....//x", "batches.sqlite", "file-0%00"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, id: str) -> None:
    async def go(api: Api) -> None:
        for path in (f"/v1/files/{id}", f"/v1/files/{id}/content"):
            assert (await api.http.get(path)).status_code == 404

    run(tmp_path, go)


def test_the_name_that_a_client_gives_is_no_path(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        made = (await api.upload(b"x", "../../evil")).json()
        assert [path.name for path in (tmp_path / "files").iterdir()] == [made["id"]]

    run(tmp_path, go)


# Bounds


def test_a_file_that_is_too_large_leaves_nothing_behind(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        refused(await api.upload(b"x" * 2049), 413, "file")
        assert (await api.upload(b"x" * 2048)).status_code == 200
        assert len(list((tmp_path / "files").iterdir())) == 1

    run(tmp_path, go, max_file="2KiB")


def test_all_files_together_are_bounded(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        id = (await api.upload(b"x" * 700)).json()["id"]
        assert "--files-space" in refused(await api.upload(b"x" * 400), 413, "file")
        await api.http.delete(f"/v1/files/{id}")
        assert (await api.upload(b"x" * 400)).status_code == 200

    run(tmp_path, go, files_space="1KiB")


def test_uploads_at_the_same_time_count_together(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        answers = await asyncio.gather(*(api.upload(b"x" * 400) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 413, 413, 413]

    run(tmp_path, go, files_space="1KiB")


def test_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        assert [(await api.upload(b"x")).status_code for _ in range(3)] == [200, 200, 413]

    run(tmp_path, go, max_files=2)


# The form


FORMS: list[tuple[dict[str, Any], int, str]] = [
    ({"data": {"purpose": "fine-tune"}, "files": {"file": b"x"}}, 400, "purpose"),
    ({"files": {"file": b"x"}}, 400, "purpose"),
    ({"data": {"purpose": "batch"}, "files": {"other": b"x"}}, 400, "other"),
    ({"data": {"purpose": "batch"}, "files": [("file", b"x"), ("file", b"y")]}, 400, "file"),
    ({"data": {"purpose": "batch", "expires_after[seconds]": "3600"}, "files": {"file": b"x"}}, 400, "expires_after[seconds]"),
    ({"data": {"purpose": "x" * 5000}, "files": {"file": b"x"}}, 400, "purpose"),
    ({"json": {"purpose": "batch"}}, 400, "Content-Type"),
    ({"data": {"purpose": "batch"}, "files": {"file": ("n" * 300, b"x")}}, 400, "file"),
]


@pytest.mark.parametrize(("form", "status", "param"), FORMS)
def test_a_form_that_is_none_is_refused_and_leaves_nothing_behind(tmp_path: Path, form: dict[str, Any], status: int, param: str) -> None:
    async def go(api: Api) -> None:
        refused(await api.http.post("/v1/files", **form), status, param)
        assert list((tmp_path / "files").iterdir()) == []

    run(tmp_path, go)


def test_a_form_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole = form_bytes(b"content")

    async def go(api: Api) -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=cut"}
        for end in range(len(whole) - 4):
            answer = await api.http.post("/v1/files", content=whole[:end], headers=headers)
            assert answer.status_code == 400, end
        assert (await api.http.post("/v1/files", content=whole, headers=headers)).status_code == 200

    run(tmp_path, go)


def form_bytes(content: bytes) -> bytes:
    file = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n' + content + b"\r\n"
    return file + b'--cut\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--cut--\r\n'


@given(st.binary(max_size=200).filter(lambda b: b"\r\n--cut" not in b), st.lists(st.integers(1, 40), min_size=1))
def test_a_form_says_the_same_however_it_is_cut_into_chunks(content: bytes, sizes: list[int]) -> None:
    form, raw, parts, turn = Multipart("multipart/form-data; boundary=cut"), form_bytes(content), list[Any](), 0
    while raw:
        size = sizes[turn % len(sizes)]
        parts += form.feed(raw[:size])
        raw, turn = raw[size:], turn + 1
    form.finish()
    assert b"".join(part.data for part in parts if isinstance(part, FileData)) == content
    assert [part for part in parts if not isinstance(part, FileData)] == [FileBegun("file", "in.jsonl"), Field("purpose", "batch")]


@given(st.binary(max_size=400))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    form = Multipart("multipart/form-data; boundary=cut")
    with suppress(InvalidRequest):
        form.feed(raw)
        form.finish()
        assert b"--cut" in raw


# Lists and owners


def test_files_are_listed_by_page_order_and_purpose(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        ids = [(await api.upload(b"x", f"{i}")).json()["id"] for i in range(4)]

        async def listed(**params: str) -> tuple[list[str], bool]:
            page = (await api.http.get("/v1/files", params=params)).json()
            return [file["id"] for file in page["data"]], page["has_more"]

        assert await listed() == (ids[::-1], False)
        assert await listed(order="asc", limit="3") == (ids[:3], True)
        assert await listed(order="asc", after=ids[1]) == (ids[2:], False)
        assert await listed(purpose="batch_output") == ([], False)
        refused(await api.http.get("/v1/files", params={"order": "up"}), 400, "order")

    run(tmp_path, go)


def test_a_key_sees_its_own_files_and_batches_alone(tmp_path: Path) -> None:
    async def go() -> None:
        keys = KeyStore(tmp_path)
        anna, bert = (f"Bearer {keys.create(name, now())[1]}" for name in ("anna", "bert"))
        async with served(FakeEngine(), tmp_path, works=False) as api:
            api.http.headers["Authorization"] = anna
            file = (await api.upload(jsonl([line("a")]))).json()["id"]
            batch = (await api.create(file)).json()["id"]
            api.http.headers["Authorization"] = bert
            for path in (f"/v1/files/{file}", f"/v1/files/{file}/content", f"/v1/batches/{batch}"):
                assert (await api.http.get(path)).status_code == 404
            assert (await api.http.delete(f"/v1/files/{file}")).status_code == 404
            assert (await api.http.post(f"/v1/batches/{batch}/cancel")).status_code == 404
            refused(await api.create(file), 400, "input_file_id")
            for path in ("/v1/files", "/v1/batches"):
                assert (await api.http.get(path)).json()["data"] == []
                refused(await api.http.get(path, params={"after": file}), 400, "after")

    asyncio.run(go())


# The folder


def test_another_process_finds_the_files(tmp_path: Path) -> None:
    made: list[str] = []

    async def first(api: Api) -> None:
        made.append((await api.upload(b"x")).json()["id"])

    async def second(api: Api) -> None:
        assert (await api.http.get(f"/v1/files/{made[0]}/content")).content == b"x"

    run(tmp_path, first)
    run(tmp_path, second)


def test_what_a_broken_upload_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    settings = ApiSettings(data=str(tmp_path))
    database = Database(tmp_path)
    files = FileStore(database, settings)
    for name, age in ((".old.part", 90_000), (".new.part", 10)):
        left = tmp_path / "files" / name
        left.write_bytes(b"x")
        then = time.time() - age
        os.utime(left, (then, then))
    files.sweep()
    database.close()
    assert [path.name for path in (tmp_path / "files").iterdir()] == [".new.part"]


def test_a_database_of_another_version_is_left_alone(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with database.transaction() as db:
        db.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigError, match="99"):
        Database(tmp_path)


@pytest.mark.parametrize("name", ["batches.sqlite", "files"])
def test_a_folder_that_cannot_be_used_is_said_before_anything_is_served(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is neither a database nor a folder" * 100)
    with pytest.raises(ConfigError, match="--data"):
        app_of(FakeEngine(), ApiSettings(data=str(tmp_path)))


def test_bytes_that_a_crash_left_without_a_file_are_swept(tmp_path: Path) -> None:
    """Killed between the end of a file and the end of its bytes; those that a batch still writes stay, and so do files."""
    database, settings = Database(tmp_path), ApiSettings(data=str(tmp_path))
    files = FileStore(database, settings)
    for name in ("file-gone", "file-kept", "file-running-output", "file-over-errors"):
        files.path(name).write_bytes(b"x")
    files.add(File("file-kept", "", "batch", "a.jsonl", 1, 0))
    with database.transaction() as db:
        for id, open in (("batch_running", 1), ("batch_over", 0)):
            db.execute("INSERT INTO batches (id, owner, input, open, batch) VALUES (?, '', 'file-kept', ?, x'')", (id, open))
    files.sweep()
    database.close()
    assert {path.name for path in (tmp_path / "files").iterdir()} == {"file-kept", "file-running-output"}


def test_a_server_that_starts_sweeps(tmp_path: Path) -> None:
    left = tmp_path / "files" / "file-gone"
    left.parent.mkdir(mode=0o700)
    left.write_bytes(b"x")

    async def go() -> None:
        async with served(FakeEngine(), tmp_path):
            await eventually(lambda: not left.exists())

    asyncio.run(go())


def test_the_number_of_files_holds_for_uploads_at_the_same_time(tmp_path: Path) -> None:
    async def go(api: Api) -> None:
        answers = await asyncio.gather(*(api.upload(b"x" * 400) for _ in range(6)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 413, 413, 413, 413]
        assert len(list((tmp_path / "files").iterdir())) == 2

    run(tmp_path, go, max_files=2)


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [("bytes=2-4", 206, b"234"), ("bytes=7-", 206, b"789"), ("bytes=-2", 206, b"89"), ("bytes=10-", 416, None), ("pages=1", 400, None)],
)
def test_parts_of_a_file(tmp_path: Path, asked: str, status: int, body: bytes | None) -> None:
    async def go(api: Api) -> None:
        id = (await api.upload(b"0123456789")).json()["id"]
        answer = await api.http.get(f"/v1/files/{id}/content", headers={"Range": asked})
        assert answer.status_code == status
        if body is None:
            refused(answer, status, "Range")
            assert answer.headers.get("content-range") == ("bytes */10" if status == 416 else None)
        else:
            assert answer.content == body

    run(tmp_path, go)
