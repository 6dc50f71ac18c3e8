"""safetensors files as they are written, cut, and damaged."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shoal.errors import CorruptModel, ShoalError, UnsupportedModel
from shoal.models.safetensors_file import SafetensorsFiles


def written(path: Path, header: Any, data: bytes = bytes(64)) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def one(dtype: Any = "F32", shape: Any = (2, 4), offsets: Any = (0, 32)) -> dict[str, Any]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_safetensors_writes(dtype: torch.dtype, path: Path) -> None:
    values = torch.arange(12, dtype=dtype).reshape(3, 4)
    save_file({"a": values, "b": values[0].clone()}, path, metadata={"format": "pt"})
    files = SafetensorsFiles([path])
    assert set(files.tensors) == {"a", "b"}
    assert files.raw(files.tensors["a"]).tobytes() == values.view(torch.uint8).numpy().tobytes()
    assert files.raw(files.tensors["b"]).shape == (1, 4 * values.element_size())


def test_several_files(tmp_path: Path) -> None:
    for name in "ab":
        save_file({name: torch.ones(2, 2)}, tmp_path / f"{name}.safetensors")
    files = SafetensorsFiles(sorted(tmp_path.iterdir()))
    assert set(files.tensors) == {"a", "b"}
    np.testing.assert_array_equal(files.raw(files.tensors["b"]).view(np.float32), np.ones((2, 2), np.float32))


@pytest.mark.parametrize("dtype", ["I8", "F64", "F8_E4M3", "BOOL"])
def test_types_that_are_not_supported(dtype: str, path: Path) -> None:
    found = SafetensorsFiles([written(path, {**one(dtype), "u": one()["t"]})])
    assert (found.tensor("u"), found.tensor("v")) == (found.tensors["u"], None)
    with pytest.raises(UnsupportedModel, match=f"tensor t is {dtype}; supported are F32"):
        found.tensor("t")


CORRUPT: dict[str, Any] = {
    "a list": [],
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe{}",
    "an entry that is none": {"t": 5},
    "no dtype": {"t": {"shape": [1], "data_offsets": [0, 4]}},
    "no offsets": {"t": {"dtype": "F32", "shape": [1]}},
    "three offsets": one(offsets=(0, 16, 32)),
    "a dtype that is a list": one(dtype=[]),
    "a shape of words": one(shape=["two"]),
    "beyond the end": one(shape=(32, 4), offsets=(0, 512)),
}
UNUSABLE: dict[str, Any] = {
    "before the beginning": one(offsets=(-32, 0)),
    "another size": one(offsets=(0, 36)),
    "backwards": one(shape=(-2, 4), offsets=(32, 0)),
    "empty": one(shape=[0], offsets=(0, 0)),
    "sizes that overflow": one(shape=(2**32, 2**32), offsets=(0, 0)),
    "a size beyond int64": one(shape=(2**70,)),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_headers_that_cannot_be(name: str, path: Path) -> None:
    with pytest.raises(CorruptModel):
        SafetensorsFiles([written(path, CORRUPT[name])])


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_tensor_that_cannot_be_matters_only_where_it_is_needed(name: str, path: Path) -> None:
    found = SafetensorsFiles([written(path, {**UNUSABLE[name], "u": one()["t"]})])
    assert found.raw(found.tensors["u"]).shape == (2, 16)
    with pytest.raises(UnsupportedModel, match="tensor t is F32 of the shape"):
        found.tensor("t")


def test_a_file_that_is_cut_says_so_and_a_whole_one_does_not(path: Path) -> None:
    with pytest.raises(CorruptModel, match="truncated: tensor t") as caught:
        SafetensorsFiles([written(path, one(shape=(32, 4), offsets=(0, 512)))])
    assert "fetch the file again" in str(caught.value)
    with pytest.raises(CorruptModel) as caught:
        SafetensorsFiles([written(path, {"t": 5})])
    assert "fetch the file again" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63])
def test_lengths_that_cannot_be(length: int, path: Path) -> None:
    path.write_bytes(struct.pack("<Q", length) + b"{" + bytes(64))
    with pytest.raises(CorruptModel):
        SafetensorsFiles([path])


def test_a_file_cut_anywhere(path: Path) -> None:
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptModel):
            SafetensorsFiles([path])


def test_any_byte_of_the_header_damaged(path: Path) -> None:
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5)}, path)
    whole, rng = path.read_bytes(), random.Random(1)
    (length,) = struct.unpack_from("<Q", whole)
    for at in [*range(8 + length)] * 4:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            files = SafetensorsFiles([path])
            for tensor in files.tensors.values():
                files.raw(tensor)
        except ShoalError:
            pass


HEADERS = {
    "infinite": b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}',
    "without end": b'{"t":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_headers_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptModel):
        SafetensorsFiles([written(tmp_path / "m.safetensors", HEADERS[name])])
