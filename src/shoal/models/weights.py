"""A model's tensors under one set of names, whatever file they come from.

    embed, norm, head
    layers.<i>.  attention_norm, mlp_norm, and where a family has them attention_after_norm, mlp_after_norm
                 q, k, v, o, q_norm, k_norm, sinks         of grouped-query attention
                 q_a, q_a_norm, q, kv_a, kv_a_norm, k_b, v_b, o    of latent attention
                 gate, up, down                            of a dense feed-forward part
                 router, selection_bias, experts.<e>.{gate, up, down}, shared.{gate, up, down}, shared_gate

A bias is <matrix>.bias. The values of a head that are rotated lie in halves everywhere; files that have them in pairs are reordered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from shoal.errors import CorruptModel, UnsupportedModel, UserError
from shoal.models.families import FAMILIES
from shoal.models.families.family import Stored
from shoal.models.families.read import spec_from_config, spec_from_gguf
from shoal.models.families.tensor_names import WHOLE, TensorPlace
from shoal.models.gguf_files import GgufFiles
from shoal.models.gguf_header import GgufHeader, unsupported
from shoal.models.int4 import METHODS, Int4
from shoal.models.matrix import FLOATS, FORMATS, Floats, StoredMatrix, floats
from shoal.models.mxfp4 import packed_rows
from shoal.models.safetensors_file import TYPES, SafetensorsFiles
from shoal.models.spec import Latent, ModelSpec, Shapes
from shoal.models.stamp import Stamp, stamps

_FACTORS = ("rope_freqs", "rope_factors_short", "rope_factors_long")
_MOST_FACTORS = 1 << 16  # more than any head has: a damaged header must not make this process allocate by its number
_FLOATS = [name for name, (format, _) in TYPES.items() if format in FLOATS]
_PACKED, _PARTS = ".qweight", ("qweight", "qzeros", "scales")
_TYPES: dict[str, np.dtype[Any]] = {"i32": np.dtype(np.int32), "f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}
_NORMS = ("norm", "attention_norm", "mlp_norm", "attention_after_norm", "mlp_after_norm", "q_norm", "k_norm")


class Weights(Protocol):
    """What an executor loads layers from."""

    @property
    def spec(self) -> ModelSpec: ...
    def matrix(self, name: str) -> StoredMatrix: ...
    def format(self, name: str) -> str:
        """That of a matrix, without reading it."""
        ...

    def vector(self, name: str) -> Floats | None:
        """A norm, a bias, or what else is one row; None if the model has none."""
        ...

    def check(self, layers: range) -> None:
        """Refuses files that lack something of these layers, or have it in another shape; with the first layer the embedding is among it,
        with the last one the head. Reads no data. Raises CorruptModel, UnsupportedModel."""
        ...

    def forget(self) -> None:
        """Releases what was read: the files' pages, not the weights made from them."""
        ...


class _Files(Protocol):
    """Tensors by their names in the files, mapped."""

    def tensor(self, name: str) -> Any: ...
    def raw(self, tensor: Any) -> NDArray[np.uint8]: ...
    def forget(self) -> None: ...


class StoredWeights:
    """Tensors of files of either kind, found and cut out as the family describes. Methods raise CorruptModel, UnsupportedModel."""

    def __init__(
        self, spec: ModelSpec, files: _Files, stored: Stored, unusable: Mapping[str, str], where: Path, int4: Int4 | None = None
    ) -> None:
        """unusable: tensors that cannot be run, and why; refused if the model needs them. int4: how matrices of layers may be packed."""
        self.spec, self.where = spec, where
        self._files, self._stored, self._int4 = files, stored, int4
        self._shapes: dict[int, Shapes] = {}
        for name in sorted(unusable.keys() & needed(spec, stored)) if unusable else ():
            files.tensor(name)  # which says what is wrong with it

    def forget(self) -> None:
        self._files.forget()

    def check(self, layers: range) -> None:
        always = FAMILIES[self.spec.family].biases
        last = layers.stop == len(self.spec.layers)
        for name in [*(["embed"] if layers.start == 0 else []), *(["head"] if last else [])]:
            self._located(name)
        if last:
            self._check_vector("norm", required=True)
        for layer in layers:
            at = f"layers.{layer}."
            for part in self.spec.matrices(layer):
                self._located(at + part)
                self._check_vector(f"{at}{part}.bias", required=_part(part) in always)
            for part in self._vectors(at):
                self._check_vector(at + part, required=True)

    def _check_vector(self, name: str, required: bool) -> None:
        if (found := self._places(name)) is not None:
            self._expect_vector(name, *found)
        elif required:
            raise CorruptModel(self.where, f"no tensor {self._stored.names.stored(name) or name}")

    def format(self, name: str) -> str:
        place, tensor = self._find("embed" if name == "head" and self.spec.tied else name)
        if place.piece.suffix == "_blocks":
            return "mxfp4"
        if self._int4 is not None and place.tensor.endswith(_PACKED):
            return self._int4.format(self._shape(name)[1])
        return "f32" if place.piece.heads == "keys" else tensor.format

    def matrix(self, name: str) -> StoredMatrix:
        wanted, place, tensor = self._located(name)
        piece, (n, k) = place.piece, self._shape(wanted)
        members = self._members(wanted, place)
        first = sum(members[: piece.rows.index(_part(wanted))]) if piece.rows and not piece.alternating else 0
        if piece.heads:
            return self._of_heads(wanted, tensor)
        if piece.suffix == "_blocks":
            rows, format = self._mxfp4(place, tensor), "mxfp4"
        elif self._int4 is not None and place.tensor.endswith(_PACKED):
            whole = self._unpacked(self._int4, place.tensor, tensor)
            rows, format = whole.rows, whole.format
        else:
            height = k if piece.transposed else sum(members)
            raw, format = self._files.raw(tensor), tensor.format
            rows = raw[place.expert * height : (place.expert + 1) * height] if piece.stacked else raw.reshape(height, -1)
            if piece.transposed:
                rows = _transposed(rows, format)
        if piece.alternating:
            rows = rows[piece.rows.index(_part(wanted)) :: len(members)]
        elif piece.rows:
            rows = rows[first : first + n]
        return StoredMatrix(format, rows, k, self._order(wanted))

    def vector(self, name: str) -> Floats | None:
        found = self._places(name)
        if found is None:
            return None
        self._expect_vector(name, *found)
        place, tensor = found
        piece, part = place.piece, _part(name)
        values = floats(tensor.format, self._files.raw(tensor), tensor.shape[-1]).reshape(-1)
        if _is_bias(name):
            matrix = name.removesuffix(".bias")
            members = self._members(matrix, place)
            values = values.reshape(self._experts(name) if piece.stacked else 1, -1)[place.expert]
            if piece.alternating:
                values = values[piece.rows.index(part) :: len(members)]
            elif piece.rows:
                first = sum(members[: piece.rows.index(part)])
                values = values[first : first + self._shape(matrix)[0]]
            order = self._order(matrix)
            return np.ascontiguousarray(values if order is None else values[order])
        less_one = self._stored.norms_less_one and part in _NORMS and not name.endswith(".bias")
        return values + np.float32(1) if less_one else values

    def stamps(self) -> list[Stamp]:
        """What tells the files from others, and from themselves after a change. Raises OSError."""
        return stamps(self.where)

    def _places(self, name: str) -> tuple[TensorPlace, Any] | None:
        for place in self._stored.names.places(name):
            if (tensor := self._files.tensor(place.tensor)) is not None:
                return place, tensor
            if self._int4 is not None and place.tensor.endswith(".weight"):
                packed = place.tensor.removesuffix(".weight") + _PACKED
                if (tensor := self._files.tensor(packed)) is not None:
                    return TensorPlace(packed, place.piece, place.expert), tensor
        return None

    def _find(self, name: str) -> tuple[TensorPlace, Any]:
        if (found := self._places(name)) is None:
            likeliest = self._stored.names.stored(name) or name
            of = f"; the model has {self._experts(name)} experts" if ".experts." in name else ""
            raise CorruptModel(self.where, f"no tensor {likeliest}{of}")
        return found

    def _shape(self, name: str) -> tuple[int, int]:
        if name in WHOLE:
            return (self.spec.vocabulary, self.spec.hidden)
        layer, part = _split(name)
        if layer not in self._shapes:
            self._shapes[layer] = self.spec.matrices(layer)
        return self._shapes[layer][part]

    def _vectors(self, name: str) -> dict[str, int]:
        return self.spec.layers[_split(name)[0]].vectors(self.spec.hidden)

    def _experts(self, name: str) -> int:
        return getattr(self.spec.layers[_split(name)[0]].feed_forward, "count", 1)

    def _located(self, name: str) -> tuple[str, TensorPlace, Any]:
        """A matrix by the name that it is found under, and its tensor, which has the right shape and a format that can be read."""
        wanted = "embed" if name == "head" and self.spec.tied else name
        place, tensor = self._find(wanted)
        piece, k = place.piece, self._shape(wanted)[1]
        n = sum(self._members(wanted, place))
        if piece.suffix == "_blocks":
            self._expect_mxfp4(wanted, place.tensor, tensor, n, k)
            return wanted, place, tensor
        if self._int4 is not None and place.tensor.endswith(_PACKED):
            found = self._packed(place.tensor, tensor)
            if (shape := self._int4.shape(self.where, place.tensor.removesuffix(_PACKED), *(found[part].shape for part in _PARTS))) != (
                n,
                k,
            ):
                raise CorruptModel(self.where, f"tensor {place.tensor} is of {list(shape)} where the model's sizes say {[n, k]}")
            return wanted, place, tensor
        self._expect(place, wanted, tensor.shape, (k, n) if piece.transposed else (n, k))
        if tensor.format not in FORMATS:
            raise UnsupportedModel(f"{self.where}: tensor {place.tensor} is {tensor.format.upper()}; supported are {', '.join(FLOATS)}")
        if tensor.format not in FLOATS and piece.transposed:
            raise UnsupportedModel(f"{self.where}: tensor {place.tensor} lies on its side in {tensor.format}, which is not supported")
        return wanted, place, tensor

    def _members(self, name: str, place: TensorPlace) -> list[int]:
        """Rows of each matrix that shares the tensor of this one."""
        return [self._shape(_sibling(name, member))[0] for member in place.piece.rows or (name,)]

    def _expect(self, place: TensorPlace, name: str, shape: tuple[int, ...], base: tuple[int, int]) -> None:
        """Refuses another shape than the model's sizes give: [n, k], for stacked ones [experts, n, k] or [experts * n, k]; latent
        attention's [heads, n / heads, k], too."""
        if place.piece.stacked:
            count = self._experts(name)
            right: list[tuple[int, ...]] = [(count, *base), (count * base[0], base[1])]
        elif place.piece.heads:
            attention = self.spec.layers[_split(name)[0]].attention
            assert isinstance(attention, Latent)
            right = [(attention.q_heads * (attention.nope_dim + attention.value_dim), attention.kv_rank)]
        else:
            right = [base]
            if base[0] == 1:
                right.append((base[1],))
            if _part(name) in ("k_b", "v_b"):  # some files have a matrix for each head
                heads = self.spec.layers[_split(name)[0]].attention.q_heads
                right.append((heads, base[0] // heads, base[1]))
        if tuple(shape) not in right:
            raise CorruptModel(self.where, f"tensor {place.tensor} has shape {list(shape)} where the model's sizes say {list(right[0])}")

    def _expect_vector(self, name: str, place: TensorPlace, tensor: Any) -> None:
        """Refuses another length than the model's sizes give."""
        if _is_bias(name):
            wanted = sum(self._members(name.removesuffix(".bias"), place)) * (self._experts(name) if place.piece.stacked else 1)
        else:
            wanted = self.spec.hidden if _part(name) == "norm" else self._vectors(name)[_part(name)]
        if (length := prod(tensor.shape)) != wanted:
            raise CorruptModel(self.where, f"tensor {place.tensor} has {length} values where the model's sizes say {wanted}")
        if tensor.format not in FORMATS:
            raise UnsupportedModel(f"{self.where}: tensor {place.tensor} is {tensor.format.upper()}; supported are {', '.join(FLOATS)}")

    def _expect_mxfp4(self, name: str, stored: str, blocks: Any, n: int, k: int) -> None:
        scales, wanted = self._scales(stored), (self._experts(name), n, k // 32)
        for tensor, its, due in ((stored, blocks, (*wanted, 16)), (f"{stored.removesuffix('_blocks')}_scales", scales, wanted)):
            if tuple(its.shape) != due or its.format != "u8":
                raise CorruptModel(
                    self.where, f"tensor {tensor} is {its.format.upper()} {list(its.shape)} where the model's sizes say U8 {list(due)}"
                )

    def _scales(self, blocks: str) -> Any:
        name = blocks.removesuffix("_blocks") + "_scales"
        if (scales := self._files.tensor(name)) is None:
            raise CorruptModel(self.where, f"no tensor {name}")
        return scales

    def _mxfp4(self, place: TensorPlace, blocks: Any) -> NDArray[np.uint8]:
        """An expert's rows from a tensor of codes and one of scales."""
        codes = self._files.raw(blocks).reshape(blocks.shape)[place.expert]
        return packed_rows(codes, self._files.raw(scales := self._scales(place.tensor)).reshape(scales.shape)[place.expert])

    def _unpacked(self, int4: Int4, packed: str, qweight: Any) -> StoredMatrix:
        """The matrix that several tensors of 4-bit codes, zero points and scales stand for."""
        found = self._packed(packed, qweight)

        def values(tensor: Any) -> NDArray[Any]:
            cells = self._files.raw(tensor).reshape(-1)
            if tensor.format == "bf16":
                return floats("bf16", cells, tensor.shape[-1])
            return cast("NDArray[Any]", cells.view(_TYPES.get(tensor.format, np.dtype(np.uint8)))).reshape(tensor.shape)

        name = packed.removesuffix(_PACKED)
        g_idx = self._files.tensor(f"{name}.g_idx")
        codes, zeros, scales = (values(found[part]) for part in _PARTS)
        return int4.matrix(self.where, name, codes, zeros, scales, None if g_idx is None else values(g_idx))

    def _packed(self, packed: str, qweight: Any) -> dict[str, Any]:
        """The tensors of codes, zero points and scales."""
        found = {"qweight": qweight}
        for part in _PARTS[1:]:
            name = f"{packed.removesuffix(_PACKED)}.{part}"
            if (tensor := self._files.tensor(name)) is None:
                raise CorruptModel(self.where, f"no tensor {name}")
            found[part] = tensor
        return found

    def _of_heads(self, name: str, tensor: Any) -> StoredMatrix:
        """Keys or values from the matrix that has both, head by head: [heads * (nope + value), rank]."""
        attention = self.spec.layers[_split(name)[0]].attention
        assert isinstance(attention, Latent)
        heads, nope, value, rank = attention.q_heads, attention.nope_dim, attention.value_dim, attention.kv_rank
        raw = self._files.raw(tensor)
        rows = np.arange(heads * (nope + value), dtype=np.int64).reshape(heads, nope + value)
        if _part(name) == "v_b":
            return StoredMatrix(tensor.format, raw, rank, np.ascontiguousarray(rows[:, nope:]).reshape(-1))
        keys = floats(tensor.format, raw[rows[:, :nope].reshape(-1)], rank).reshape(heads, nope, rank)
        turned = np.ascontiguousarray(keys.transpose(0, 2, 1)).reshape(heads * rank, nope)
        return StoredMatrix("f32", turned.view(np.uint8), nope)

    def _order(self, name: str) -> NDArray[np.int64] | None:
        """The stored row of each row, where the file has rotated values in pairs."""
        part = _part(name)
        if not self._stored.interleaved or part not in ("q", "k", "kv_a"):
            return None
        attention = self.spec.layers[_split(name)[0]].attention
        if isinstance(attention, Latent):
            before, rotated, after = (attention.nope_dim if part == "q" else attention.kv_rank), attention.rope_dim, 0
        else:
            rotated = 0 if attention.rope is None else attention.rope.rotated(attention.head_dim)
            before, after = 0, attention.head_dim - rotated
        if not rotated:
            return None
        width, n = before + rotated + after, self._shape(name)[0]
        pairs = np.arange(rotated).reshape(rotated // 2, 2).T.reshape(-1)
        head = np.concatenate([np.arange(before), before + pairs, before + rotated + np.arange(after)])
        return (np.arange(n // width)[:, None] * width + head[None, :]).reshape(-1).astype(np.int64)


def _part(name: str) -> str:
    """'gate' of 'layers.3.experts.17.gate' and of 'layers.3.gate.bias'."""
    return name.removesuffix(".bias").rsplit(".", 1)[-1]


def _is_bias(name: str) -> bool:
    """Whether it is the bias of a matrix, not of a norm."""
    return name.endswith(".bias") and _part(name) not in _NORMS


def _split(name: str) -> tuple[int, str]:
    """3 and 'experts.17.gate' of 'layers.3.experts.17.gate'."""
    _, layer, part = name.split(".", 2)
    return int(layer), part


def _sibling(name: str, part: str) -> str:
    """'layers.3.experts.17.up' for 'layers.3.experts.17.gate' and 'up'."""
    return name if part == name else f"{name.rpartition('.')[0]}.{part}"


def _transposed(rows: NDArray[np.uint8], format: str) -> NDArray[np.uint8]:
    """[n, k] of floats from [k, n]."""
    cells = rows.view(np.uint32 if format == "f32" else np.uint16)
    return np.ascontiguousarray(cells.T).view(np.uint8)


def needed(spec: ModelSpec, stored: Stored) -> set[str]:
    """Tensors that a model may have, as its files call them."""
    inner = (f"layers.{i}.{part}" for i in range(len(spec.layers)) for part in spec.names(i))
    return {place.tensor for name in (*WHOLE, *inner) for kind in ("", ".bias") for place in stored.names.places(name + kind)}


class GgufWeights(StoredWeights):
    def __init__(self, path: Path) -> None:
        self.file = GgufFiles(path)
        factors: dict[str, list[float]] = {}
        for name in _FACTORS:
            if (found := self.file.tensor(f"{name}.weight")) is not None:
                factors[name] = floats(found.format, self.file.raw(found), found.shape[-1])[0].tolist()
        spec = spec_from_gguf(self.file.meta, self.file.shapes, factors, path)
        super().__init__(spec, self.file, FAMILIES[spec.family].gguf, self.file.unusable, path)


def check_header(header: GgufHeader, where: object) -> ModelSpec:
    """Refuses a model by the header of its only or first GGUF file, as GgufWeights would refuse the file.

    The first of several files may hold no tensors; the vocabulary is then counted from its tokens. Raises CorruptModel, UnsupportedModel.
    """
    shapes = dict(header.shapes)
    if header.meta.get("split.count", 1) > 1:
        shapes.setdefault("token_embd.weight", (len(header.meta.get("tokenizer.ggml.tokens", ())), 0))
    factors = {name: [1.0] * min(shapes[f"{name}.weight"][-1], _MOST_FACTORS) for name in _FACTORS if f"{name}.weight" in shapes}
    spec = spec_from_gguf(header.meta, shapes, factors, where)
    check_formats(header, spec, where)
    return spec


def check_formats(header: GgufHeader, spec: ModelSpec, where: object) -> None:
    """Refuses a file with a tensor that the model needs and that cannot be run. Raises UnsupportedModel."""
    if header.unusable and (wrong := header.unusable.keys() & needed(spec, FAMILIES[spec.family].gguf)):
        name = min(wrong)
        raise unsupported(where, name, header.unusable[name])


def check_types(types: Mapping[str, str], spec: ModelSpec, where: object) -> None:
    """Refuses safetensors with a tensor that the model needs and that cannot be run. types: by name, as a header says. Raises UnsupportedModel."""
    strange = {name for name, type in types.items() if type not in (("U8",) if name.endswith("_blocks") else _FLOATS)}
    if strange and (wrong := sorted(strange & needed(spec, FAMILIES[spec.family].safetensors))):
        raise UnsupportedModel(f"{where}: tensor {wrong[0]} is {types[wrong[0]]}; supported are {', '.join(_FLOATS)}")


class SafetensorsWeights(StoredWeights):
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        values = _config(directory)
        spec = spec_from_config(values, directory)
        quantised = cast("dict[str, Any]", values.get("quantization_config") or {})
        int4 = Int4.of(quantised, directory) if quantised.get("quant_method") in METHODS else None
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise UserError(f"{directory}: no *.safetensors files")
        opened = SafetensorsFiles(files)
        super().__init__(spec, opened, FAMILIES[spec.family].safetensors, opened.unusable, directory, int4)


def open_spec(directory: Path) -> ModelSpec:
    """The spec in config.json. Raises UserError, CorruptModel, UnsupportedModel."""
    return spec_from_config(_config(directory), directory)


def _config(directory: Path) -> dict[str, Any]:
    config = directory / "config.json"
    try:
        values = json.loads(config.read_bytes().decode("utf-8-sig", errors="replace"))
    except FileNotFoundError:
        raise UserError(f"{directory}: no config.json; a model directory holds config.json, tokenizer.json and *.safetensors") from None
    except (ValueError, RecursionError) as error:
        raise CorruptModel(config, f"not a model's configuration ({error})") from None
    if not isinstance(values, dict):
        raise CorruptModel(config, "not a model's configuration (no object)")
    return cast("dict[str, Any]", values)


def open_weights(path: Path) -> GgufWeights | SafetensorsWeights:
    """Opens a .gguf file or a model directory."""
    if path.is_dir():
        return SafetensorsWeights(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    return GgufWeights(path)
