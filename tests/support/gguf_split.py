"""GGUF models cut into parts, as llama.cpp's gguf-split does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gguf import GGUFReader, GGUFWriter


def split(whole: Path, folder: Path, count: int = 4, name: str = "my model", changes: Mapping[str, int] | None = None) -> list[Path]:
    """As gguf-split does it: the metadata in the first part, the tensors in their order, so many parts. changes: in what each says of itself."""
    reader = GGUFReader(whole)
    each = -(-len(reader.tensors) // count)
    tensors = [reader.tensors[at * each : (at + 1) * each] for at in range(count)]
    parts = [folder / f"{name}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
    for at, (part, inside) in enumerate(zip(parts, tensors, strict=True)):
        writer = GGUFWriter(part, "llama")
        for key, field in reader.fields.items() if not at else ():
            if not key.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(key, field.contents(), field.types[0])
        said = {"split.no": at, "split.count": count, "split.tensors.count": len(reader.tensors), **(changes or {})}
        for key, value in said.items():
            writer.add_uint16(key, value) if key != "split.tensors.count" else writer.add_int32(key, value)
        for tensor in inside:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts
