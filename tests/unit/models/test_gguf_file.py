"""GGUF files as they are written, cut, and damaged: an answer or one of shoal's errors, never another, never much memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from structlog.testing import capture_logs

from shoal.errors import CorruptModel, ShoalError, UnsupportedModel
from shoal.models.gguf_file import GgufFile
from shoal.models.gguf_files import GgufFiles
from shoal.models.weights import GgufWeights
from tests.support import tiny
from tests.support.gguf_writer import write_model


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


def file(path: Path, entries: list[bytes] = [], tensors: list[bytes] = [], data: bytes = b"", version: int = 3) -> Path:  # noqa: B006
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    built = tiny.model("llama", num_hidden_layers=1)
    return write_model(tmp_path_factory.mktemp("whole") / "m.gguf", built, "llama", "q8_0").read_bytes()


def header_size(content: bytes, scratch: Path) -> int:
    scratch.write_bytes(content)
    return min(t.offset for t in GgufFile(scratch).tensors.values())


def use(path: Path) -> None:
    """Reads all of a model; only shoal's own errors may come of a damaged one."""
    try:
        weights = GgufWeights(path)
        for name in ("embed", "head", *(f"layers.0.{m}" for m in weights.spec.matrices(0))):
            weights.matrix(name)
        for name in ("norm", "layers.0.attention_norm", "layers.0.mlp_norm", "layers.0.q.bias"):
            weights.vector(name)
    except ShoalError:
        pass


def test_metadata_of_every_kind(path: Path) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("a", 200)
    writer.add_int8("b", -5)
    writer.add_uint16("c", 60000)
    writer.add_int16("d", -300)
    writer.add_uint32("e", 2**31)
    writer.add_int32("f", -7)
    writer.add_float32("g", 0.5)
    writer.add_bool("h", True)
    writer.add_string("i", "naïve 🦙")
    writer.add_uint64("j", 2**40)
    writer.add_int64("k", -(2**40))
    writer.add_float64("l", 0.1)
    writer.add_array("m", [1, 2, 3])
    writer.add_array("n", ["x", "", "yz"])
    writer.add_array("o", [0.5, 1.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    meta = GgufFile(path).meta
    assert [meta[key] for key in "abcdef"] == [200, -5, 60000, -300, 2**31, -7]
    assert [meta[key] for key in "ghijkl"] == [0.5, True, "naïve 🦙", 2**40, -(2**40), 0.1]
    assert [meta[key] for key in "mno"] == [[1, 2, 3], ["x", "", "yz"], [0.5, 1.5]]
    assert isinstance(meta["h"], bool)


def test_tensors(path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    found = GgufFile(file(path, tensors=[tensor("t", (4, 3, 2), 0, 32)], data=bytes(32) + values.tobytes()))
    t = found.tensors["t"]
    assert (t.format, t.shape, t.rows, t.row_bytes) == ("f32", (2, 3, 4), 6, 16)
    np.testing.assert_array_equal(found.raw(t).view(np.float32), values.reshape(6, 4))


def test_the_alignment_of_the_file(path: Path) -> None:
    raw = file(path, [entry("general.alignment", 4, struct.pack("<I", 64))], [tensor("t", (1,))], bytes(68))
    assert GgufFile(raw).tensors["t"].offset % 64 == 0


def test_nested_arrays(path: Path) -> None:
    inner = struct.pack("<IQ", 0, 2) + b"\x01\x02"
    assert GgufFile(file(path, [entry("x", 9, struct.pack("<IQ", 9, 2) + inner * 2)])).meta["x"] == [[1, 2], [1, 2]]


CORRUPT = {
    "no magic": b"GGML" + bytes(40),
    "empty": b"",
    "short": b"GGUF\x03\x00\x00\x00",
    "many tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0),
    "many entries": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_what_is_no_gguf_file(name: str, path: Path) -> None:
    path.write_bytes(CORRUPT[name])
    with pytest.raises(CorruptModel):
        GgufFile(path)


BAD_ENTRIES = {
    "unknown kind": entry("x", 13, b""),
    "array of unknown kind": entry("x", 9, struct.pack("<IQ", 13, 1)),
    "array too long": entry("x", 9, struct.pack("<IQ", 4, 2**60)),
    "array longer than the file": entry("x", 9, struct.pack("<IQ", 10, 2**25)),
    "strings more than the file": entry("x", 9, struct.pack("<IQ", 8, 2**25)),
    "string too long": entry("x", 8, struct.pack("<Q", 2**63)),
    "string longer than the file": entry("x", 8, struct.pack("<Q", 10000)),
    "no alignment": entry("general.alignment", 4, struct.pack("<I", 0)),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_metadata_that_cannot_be(name: str, path: Path) -> None:
    with pytest.raises(CorruptModel):
        GgufFile(file(path, [BAD_ENTRIES[name]]))


BAD_TENSORS = {
    "no dimensions": tensor("t", ()),
    "five dimensions": tensor("t", (1, 1, 1, 1, 1)),
    "no rows": tensor("t", (32, 0)),
    "half a block": tensor("t", (33, 1), 2),
    "beyond the end": tensor("t", (64, 64)),
    "far beyond the end": tensor("t", (32,), 0, 2**63),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_cannot_be(name: str, path: Path) -> None:
    with pytest.raises(CorruptModel):
        GgufFile(file(path, tensors=[BAD_TENSORS[name]], data=bytes(64)))


TYPES = [(24, "I8"), (28, "F64"), (9, "Q8_1"), (77, "unknown type 77")]


@pytest.mark.parametrize(("kind", "what"), TYPES)
def test_types_that_are_not_supported(kind: int, what: str, path: Path) -> None:
    with capture_logs() as said:
        found = GgufFile(file(path, tensors=[tensor("t", (32,), kind), tensor("u", (2,))], data=bytes(512)))
    assert [(line["log_level"], list(line["tensors"])) for line in said] == [("warning", ["t"])]
    assert (found.shapes["t"], found.tensor("u"), found.tensor("v")) == ((32,), found.tensors["u"], None)
    with pytest.raises(UnsupportedModel, match=rf"tensor t has the .*{what}, which is not supported; supported are bf16"):
        found.tensor("t")


def test_a_scale_of_a_whole_tensor_is_not_left_out(path: Path) -> None:
    """NVFP4 files have one where the scales of the blocks do not reach far enough."""
    raw = file(path, tensors=[tensor("blk.0.ffn_up.weight", (64, 1), 40), tensor("blk.0.ffn_up.scale", (1,))], data=bytes(64))
    with capture_logs(), pytest.raises(UnsupportedModel, match=r"has a scale in a tensor of its own, blk\.0\.ffn_up\.scale"):
        GgufFile(raw).tensor("blk.0.ffn_up.weight")


def with_a_tensor(whole: bytes, path: Path, name: str, kind: int) -> Path:
    """The model, with such a tensor at the end of its list."""
    at, old = header_size(whole, path), GgufFile(path)
    listed = b"".join(
        tensor(t.name, t.shape[::-1], {"f32": 0, "q8_0": 8}[t.format], t.offset - at) for t in old.tensors.values() if t.name != name
    )
    count = sum(t.name != name for t in old.tensors.values()) + 1
    first = next(iter(old.tensors))
    begin = whole.index(string(first))
    header = whole[:8] + struct.pack("<Q", count) + whole[16:begin] + listed + tensor(name, (32, 1), kind)
    path.write_bytes(header + bytes(-len(header) % 32) + whole[at:])
    return path


def test_a_tensor_that_nobody_needs_does_not_refuse_the_model(whole: bytes, path: Path) -> None:
    path.write_bytes(whole)
    plain = GgufWeights(path)
    wanted = [plain.matrix(f"layers.0.{m}").floats().tobytes() for m in plain.spec.matrices(0)]
    weights = GgufWeights(with_a_tensor(whole, path, "vision.projector", 77))
    assert weights.spec == plain.spec
    assert [weights.matrix(f"layers.0.{m}").floats().tobytes() for m in weights.spec.matrices(0)] == wanted


@pytest.mark.parametrize("name", ["blk.0.ffn_up.weight", "blk.0.attn_q.bias", "output_norm.weight"])
def test_a_tensor_that_the_model_needs_is_refused_before_anything_is_loaded(name: str, whole: bytes, path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=f"tensor {name} has the unknown type 77"):
        GgufWeights(with_a_tensor(whole, path, name, 77))


def test_a_description_that_is_not_utf8_is_read_as_far_as_it_can_be(path: Path) -> None:
    with capture_logs() as said:
        found = GgufFile(file(path, [entry("general.description", 8, string(b"caf\xe9")), entry("y", 8, string("\u00e9"))]))
    assert found.meta == {"general.description": "caf\ufffd", "y": "\u00e9"}
    assert [(line["log_level"], line["keys"]) for line in said] == [("warning", ["general.description"])]


def test_only_a_file_that_is_cut_is_to_be_fetched_again(whole: bytes, path: Path) -> None:
    path.write_bytes(whole[:-5000])
    with pytest.raises(CorruptModel, match=r"is truncated.*; fetch the file again"):
        GgufFile(path)
    with pytest.raises(CorruptModel) as caught:
        GgufFile(file(path, tensors=[tensor("t", (33, 1), 2)]))
    assert "fetch" not in str(caught.value)
    assert "look for another version" in str(caught.value)


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_versions_that_are_not_supported(version: int, path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="version"):
        GgufFile(file(path, version=version))


def test_a_file_cut_anywhere_in_its_header(whole: bytes, path: Path) -> None:
    for size in range(header_size(whole, path)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptModel):
            GgufFile(path)


def test_a_file_cut_in_its_data(whole: bytes, path: Path) -> None:
    for size in range(header_size(whole, path), len(whole) - 31, 997):  # the last tensor may be padded
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptModel, match="truncated"):
            GgufFile(path)


@pytest.mark.slow
def test_any_byte_of_the_header_damaged(whole: bytes, path: Path) -> None:
    rng = random.Random(1)
    for at in range(header_size(whole, path)):
        damaged = bytearray(whole)
        damaged[at] ^= rng.choice([1, 2, 0x80, 0xFF])
        path.write_bytes(damaged)
        use(path)


def test_memory_stays_small(path: Path) -> None:
    """A count that the file cannot hold is refused before anything is allocated for it."""
    file(path, [entry("x", 9, struct.pack("<IQ", 8, 2**26))])
    tracemalloc.start()
    try:
        with pytest.raises(CorruptModel):
            GgufFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


TENSORS = {
    "overflowing sizes": tensor("t", (2**32, 2**32)),
    "a size beyond int64": tensor("t", (32, 2**63)),
    "a row beyond int64": tensor("t", (2**63,)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_sizes_that_overflow(name: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptModel):
        GgufFile(file(tmp_path / "m", tensors=[TENSORS[name]], data=bytes(64)))


def test_arrays_in_arrays_without_end(tmp_path: Path) -> None:
    with pytest.raises(CorruptModel):
        GgufFile(file(tmp_path / "m", [entry("x", 9, struct.pack("<IQ", 9, 1) * 5000)]))


@pytest.mark.parametrize("value", [entry("general.alignment", 8, string("x")), entry("general.alignment", 9, struct.pack("<IQ", 4, 0))])
def test_an_alignment_of_another_type(value: bytes, tmp_path: Path) -> None:
    with pytest.raises(CorruptModel):
        GgufFile(file(tmp_path / "m", [value]))


@pytest.mark.parametrize(
    ("kind", "count"),
    [(5, struct.pack("<i", -1)), (6, struct.pack("<f", 2.0)), (8, string("x" * 1000)), (7, b"\x01"), (9, struct.pack("<IQI", 4, 1, 4))],
    ids=["negative", "float", "text", "bool", "list"],
)
def test_a_number_of_parts_that_is_none_is_told(kind: int, count: bytes, tmp_path: Path) -> None:
    path = file(tmp_path / "m-00001-of-00004.gguf", [entry("split.count", kind, count)])
    with pytest.raises(CorruptModel, match=r"split\.count, the number of the model's parts, is") as caught:
        GgufFiles(path)
    assert len(str(caught.value)) < 400
