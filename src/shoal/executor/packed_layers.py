"""A model's layers as packed files in a folder: made once, a file for each layer and one for the head."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic, perf_counter, time
from typing import Any

import msgspec
import numpy as np
import structlog

from shoal.config import Precision
from shoal.errors import CorruptModel, DamagedPackedFile, NoRoomToPack, WeightsUnreadable
from shoal.executor.base import BlockPart
from shoal.executor.native_blocks import BlockMaker, Tensors
from shoal.executor.packing import RecordedTensors, StoredTensors, UnitTensors
from shoal.executor.unpacked_layer import UnpackedLayer
from shoal.models.spec import Experts, ModelSpec
from shoal.models.weights import StoredWeights, Weights
from shoal.native import kernels
from shoal.placement.division import StageSizes
from shoal.sizes import human_bytes
from shoal.weights.direct_file import DirectFile, Source
from shoal.weights.packed_file import Bytes, Contents, PackedUnit, read_index, write
from shoal.weights.reader import read_whole
from shoal.weights.slot_memory import SlotMemory

log = structlog.get_logger()

CONSTANT = "constant"
"""The unit of a layer that every step reads: its attention and what its feed-forward part has besides experts. The head's file has only this."""
_SPARE = 256 << 20
"""Bytes that packing leaves free on a disk."""
_ABANDONED = 3600.0
"""Seconds without a write after which nobody writes a file any more."""


_WHILE = 600.0
"""Seconds in which damage of files counts as the fault of their disk."""


class Damage:
    """What is known about the packed files of a model, however often they are opened anew."""

    def __init__(self) -> None:
        self.layers: set[int] = set()
        """Those that could not be read, and whose files have to be made again; the head is the layer after the last."""
        self.trusted = True
        """Whether files are made and read. Otherwise all is packed on the way."""
        self._mended: list[float] = []

    def mended(self) -> int:
        """Notes that files are made again now. Returns how often that was of late."""
        now = monotonic()
        self._mended = [*(at for at in self._mended if now - at < _WHILE), now]
        return len(self._mended)


def expert_unit(number: int) -> str:
    return f"expert {number}"


def count_of(spec: ModelSpec, layer: int) -> int:
    """The experts of a layer; 0 for a dense one and for the head."""
    feed_forward = spec.layers[layer].feed_forward if layer < len(spec.layers) else None
    return feed_forward.count if isinstance(feed_forward, Experts) else 0


def folder_name(name: str, stamps: object, spec: ModelSpec, precision: Precision) -> str:
    """Of a model's packed files. stamps: another one if the model's files change."""
    made_of = msgspec.json.encode([stamps, spec, str(precision)])
    return f"{name[:80]}-{sha256(made_of).hexdigest()[:16]}"


class PackedLayers:
    """folder: of this model at this precision. tensors: of the model. tell: receives lines for the person at this machine."""

    def __init__(self, folder: Path, spec: ModelSpec, tensors: Tensors, tell: Callable[[str], None] = lambda line: None) -> None:
        self._folder, self.spec, self._tensors, self._tell = folder, spec, tensors, tell
        self._module = kernels()
        self._open: dict[int, dict[str, PackedUnit]] = {}
        self._files: dict[int, DirectFile] = {}
        self._unpacked: dict[int, UnpackedLayer] = {}
        self.damage = Damage()
        self.failed = False
        """Whether any could not be read, since they were opened."""

    @classmethod
    def of(
        cls, weights: StoredWeights, home: Path, precision: Precision, threads: int, tell: Callable[[str], None] = lambda line: None
    ) -> PackedLayers:
        """home: of all models' packed files. Raises OSError."""
        folder = home / folder_name(weights.where.name, weights.stamps(), weights.spec, precision)
        return cls(folder, weights.spec, StoredTensors(weights, precision, threads), tell)

    def path(self, layer: int) -> Path:
        name = "head" if layer == len(self.spec.layers) else f"layer-{layer:04d}"
        return self._folder / f"{name}.packed"

    def units(self, layer: int) -> dict[str, PackedUnit]:
        """Of a layer, or of the head, which is the layer after the last. Raises DamagedPackedFile, OSError; CorruptModel, UnsupportedModel
        of one that has no file."""
        if layer in self._unpacked:
            return self._unpacked[layer].units
        if layer not in self._open:
            if not self.damage.trusted or not self.path(layer).exists():
                return self._on_the_way(layer).units
            index = read_index(self.path(layer))
            wanted = {CONSTANT, *(expert_unit(number) for number in range(count_of(self.spec, layer)))}
            if index.keys() != wanted:
                raise DamagedPackedFile(self.path(layer), "packed weights of another model")
            self._open[layer] = index
        return self._open[layer]

    def unit(self, layer: int, name: str) -> PackedUnit:
        return self.units(layer)[name]

    def source(self, layer: int) -> Source:
        """The file of a layer, which stays open until `close`; or what packs it on the way. Raises OSError."""
        if layer in self._unpacked:
            return self._unpacked[layer]
        if layer not in self._files:
            self._files[layer] = DirectFile(self.path(layer))
        return self._files[layer]

    def read(self, layer: int, name: str, into: memoryview) -> Bytes:
        """A unit, read now. Raises WeightsUnreadable."""
        unit = self.unit(layer, name)
        try:
            if (error := read_whole(self.source(layer), unit.at, into[: unit.size])) is not None:
                raise error
            return self.verified(layer, name, into)
        except WeightsUnreadable:
            self.unreadable(layer)
            raise

    def unreadable(self, layer: int) -> None:
        """A step failed because of a layer's file."""
        if layer not in self.damage.layers:
            log.warning("packed weights cannot be read, and are made again before the next route", path=str(self.path(layer)))
        self.failed = True
        self.damage.layers.add(layer)

    def verified(self, layer: int, name: str, memory: memoryview) -> Bytes:
        """What was read of a unit. Raises WeightsUnreadable unless it is what was written."""
        unit, found = self.unit(layer, name), np.frombuffer(memory, np.uint8)
        if not unit.verified(found):
            raise WeightsUnreadable(self.path(layer), f"{unit.size} bytes at {unit.at} are not what was written")
        return found

    def maker(self, layer: int, name: str, memory: Bytes) -> BlockMaker:
        """Makes blocks of what is in memory."""
        return BlockMaker(self._module, self.spec, UnitTensors(self.unit(layer, name), memory), layer)

    def close(self) -> None:
        """Closes the files; no read may be under way."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def sizes(self, layers: range) -> StageSizes:
        """Of layers; with the last one, the head's is among them."""
        constant, expert, experts, chosen = dict[int, int](), dict[int, int](), dict[int, int](), 0
        for layer in layers:
            constant[layer] = self.unit(layer, CONSTANT).size
            feed_forward = self.spec.layers[layer].feed_forward
            if isinstance(feed_forward, Experts):
                experts[layer], chosen = feed_forward.count, max(chosen, feed_forward.routing.chosen)
                expert[layer] = self.expert_size(layer)
        head = self.unit(layers.stop, CONSTANT).size if layers.stop == len(self.spec.layers) else 0
        return StageSizes(constant, expert, experts, chosen, head)

    def expert_size(self, layer: int) -> int:
        """Bytes of the largest expert of a layer that has any."""
        return max(self.unit(layer, expert_unit(number)).size for number in range(count_of(self.spec, layer)))

    def made(self, layer: int) -> bool:
        """Whether a layer's file is there and is complete; a damaged one is deleted."""
        if not self.path(layer).exists():
            return False
        try:
            self.units(layer)
        except DamagedPackedFile as error:
            log.warning("packed weights are made again", reason=str(error))
            self.path(layer).unlink(missing_ok=True)
            return False
        return True

    def _distrust(self) -> None:
        """The disk's files are not used any more."""
        self.damage.trusted = False
        why = f"{self._folder} cannot be read again and again, though it is made anew"
        log.warning("weights are packed on the way", reason=why)
        self._tell(f"{why}: check the disk. From now on weights are packed each time they are read, which is slower")

    def intact(self, layer: int) -> bool:
        """Whether a layer's file is all there and what was written; reads all of it."""
        try:
            units, source = self.units(layer).values(), self.source(layer)
        except (DamagedPackedFile, OSError):
            return False
        memory = SlotMemory(1, max(unit.size for unit in units)).view(0)
        bytes_read = np.frombuffer(memory, np.uint8)
        return all(read_whole(source, unit.at, memory[: unit.size]) is None and unit.verified(bytes_read) for unit in units)

    def usable(self, layer: int) -> bool:
        """Whether a layer's file, which another node made, is whole and has the shapes of the model; one that has not is deleted. Reads all of
        it."""
        try:
            self._try(layer)
        except (DamagedPackedFile, WeightsUnreadable, CorruptModel, ValueError, KeyError, OSError) as error:
            log.warning("packed weights of another node are of no use", path=str(self.path(layer)), reason=repr(error))
            self.close()
            self._open.pop(layer, None)
            self.path(layer).unlink(missing_ok=True)
            return False
        return True

    def _try(self, layer: int) -> None:
        """Makes all blocks of a layer's file, one after the other."""
        kind = None if layer == len(self.spec.layers) else self.spec.layers[layer].feed_forward
        module: Any = self._module
        experts: Any = None
        if isinstance(kind, Experts):
            experts = module.ExpertSet([None] * kind.count, width=kind.width, hidden=self.spec.hidden, activation=kind.activation)
        memory = SlotMemory(1, max(unit.size for unit in self.units(layer).values())).view(0)
        for name in self.units(layer):
            maker = self.maker(layer, name, self.read(layer, name, memory))
            if name != CONSTANT:
                number = int(name.split()[1])
                experts.place(number, maker.expert(number))
                experts.place(number, None)
            elif kind is None:
                maker.block(BlockPart.HEAD)
            else:
                maker.block(BlockPart.ATTENTION)
                maker.block(BlockPart.FEED_FORWARD, experts=False)

    def make(self, layers: list[int], damaged: Collection[int] = ()) -> None:
        """Makes the files that are missing, of layers and, as the layer after the last, of the head; those of an earlier attempt are kept,
        unless they are damaged. What the disk has no room for is packed on the way, each time that it is read.

        Raises CorruptModel, UnsupportedModel, OSError.
        """
        if not self.damage.trusted:
            return
        try:
            self._make(layers, damaged)
        except NoRoomToPack as error:
            log.warning("weights are packed on the way", reason=str(error))
            self._tell(f"{error}. Until then weights are packed each time they are read, which is slower")

    def mend(self, layers: list[int], times: int) -> None:
        """Makes damaged files again. times: how often that was done of late. The second time it reads all others, too: each that is damaged
        would cost a step. The third time no file is used any more. Raises as `make`."""
        if times > 2 and self.damage.trusted:
            self._distrust()
        damaged = self.damage.layers.intersection(layers)
        if times > 1 and self.damage.trusted:
            damaged.update(layer for layer in layers if layer not in damaged and not self.intact(layer))
        self.make(layers, damaged)
        self.damage.layers.difference_update(layers)

    def _make(self, layers: list[int], damaged: Collection[int]) -> None:
        missing = [layer for layer in layers if layer in damaged or not self.made(layer)]
        if not missing:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tidy()
        began, written = perf_counter(), 0
        for done, layer in enumerate(missing, 1):
            if (free := shutil.disk_usage(self._folder).free) < (needed := written // max(done - 1, 1) + _SPARE):
                raise NoRoomToPack(self._folder, needed, free)
            units = self._open[layer] = self._written(layer)
            written += sum(unit.size for unit in units.values())
            if done in (1, len(missing)) or done % 8 == 0:
                rate = f"{human_bytes(written)} in {perf_counter() - began:.0f} s"
                self._tell(f"packing weights for reads from disk: {done} of {len(missing)} parts, {rate}, into {self._folder}")

    def _written(self, layer: int) -> dict[str, PackedUnit]:
        try:
            return write(self.path(layer), self._contents(layer))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoRoomToPack(self._folder, 0, shutil.disk_usage(self._folder).free) from error

    def _tidy(self) -> None:
        """Deletes what processes that ended while they wrote have left."""
        for left in self._folder.glob("*.partial"):
            with suppress(OSError):
                if left.stat().st_mtime < time() - _ABANDONED:
                    left.unlink()

    def _on_the_way(self, layer: int) -> UnpackedLayer:
        experts = [expert_unit(number) for number in range(count_of(self.spec, layer))]
        made = {CONSTANT: partial(self._constant, layer), **{name: partial(self._expert, layer, i) for i, name in enumerate(experts)}}
        self._unpacked[layer] = UnpackedLayer(self.path(layer), made, dict.fromkeys(experts[1:], expert_unit(0)))
        return self._unpacked[layer]

    def _contents(self, layer: int) -> Iterator[tuple[str, Contents]]:
        yield CONSTANT, self._constant(layer)
        for number in range(count_of(self.spec, layer)):
            yield expert_unit(number), self._expert(layer, number)

    def _constant(self, layer: int) -> Contents:
        recorded = RecordedTensors(self._tensors)
        maker = BlockMaker(self._module, self.spec, recorded, layer)
        if layer == len(self.spec.layers):
            maker.block(BlockPart.HEAD)
        else:
            maker.block(BlockPart.ATTENTION)
            maker.block(BlockPart.FEED_FORWARD, experts=False)
        return recorded.taken()

    def _expert(self, layer: int, number: int) -> Contents:
        recorded = RecordedTensors(self._tensors)
        BlockMaker(self._module, self.spec, recorded, layer).expert(number)
        return recorded.taken()


PackedFinder = Callable[[Weights], PackedLayers]
"""The packed files of a model."""
