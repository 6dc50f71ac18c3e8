"""A node's part of a model: fetched, loaded, and kept from epoch to epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog
from msgspec.structs import asdict

from shoal.config import KvType, NodeSettings, Precision
from shoal.control import messages as control
from shoal.errors import ClusterError, LocalProtocolError
from shoal.executor.expert_bank import ExpertBank
from shoal.executor.expert_split import Experts, RemoteExperts
from shoal.executor.journal import JournalLimits
from shoal.executor.packed_layers import PackedLayers
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.executor.store import RowCounts, summed
from shoal.models.sources import pull_layers
from shoal.models.weights import StoredWeights, Weights, open_weights
from shoal.node.expert_tables import together
from shoal.node.fetch import manifest_of
from shoal.node.grammars import GrammarProcess
from shoal.node.stage_service import wire_codec
from shoal.weights.expert_reads import ExpertReads

log = structlog.get_logger()


class PulledModel:
    """The model that a head's order names, as far as this node was told to hold it."""

    def __init__(self, settings: NodeSettings, order: control.Load, tell: Callable[[str], None] = lambda line: None) -> None:
        """tell: receives lines for the person at this machine."""
        self._told, self._packed_folder, self._precision = tell, settings.packed_folder, Precision(order.precision)
        self._threads, self._isa = settings.compute_threads, settings.isa
        self._bank: ExpertBank | None = None
        self._activity = ""
        """What was told last of a load."""
        self._reference, self._layers = order.model, order.layers
        self._manifest = manifest_of(order)
        self._from_origin = 0
        self._files: PackedLayers | None = None
        """The packed files that were used last."""
        self._listed = True
        """Whether all that was read are the files that the head names."""
        journals = JournalLimits(settings.journal_memory, settings.journal_disk_bytes, wire_codec(order.codec))
        make = factory(settings.runtime, self._precision, KvType(order.kv_type), settings.compute_threads, settings.isa)
        self._read: Path | None = None  # where the last layers came from
        self._grammars = GrammarProcess(self._tokenizer)
        self._finder = self._packed if self._packed_folder is not None else None
        self._shard = Shard(make, journals, self._grammars, order.context, self._finder)

    @property
    def layers(self) -> list[range]:
        return self._shard.layers

    @property
    def nbytes(self) -> int:
        return self._shard.nbytes + (self._bank.nbytes if self._bank is not None else 0)

    @property
    def runtime(self) -> str:
        return self._shard.runtime or (self._bank.name if self._bank is not None else "")

    @property
    def expert_rows(self) -> dict[int, RowCounts]:
        rows = self._shard.expert_rows
        return rows if self._bank is None else summed(rows, self._bank.expert_rows)

    @property
    def expert_reads(self) -> ExpertReads:
        reads = self._shard.expert_reads
        return reads if self._bank is None else reads.plus(self._bank.expert_reads)

    def shed(self, wanted: list[range]) -> None:
        self._shard.shed(wanted)

    def load(self, layers: range, streamed: bool = False, elsewhere: Experts | None = None) -> None:
        """Raises ShoalError, OSError."""
        self._activity = ""
        for part in self._shard.missing(layers, streamed, elsewhere):
            path, weights = self._opened(part)
            log.info("weights are read", layers=f"{part.start}-{part.stop - 1}")
            self._shard.load(part, weights, streamed, elsewhere)
            if part.stop == self._layers:
                self._read = path

    def _opened(self, part: range) -> tuple[Path, Weights]:
        path = self._here(part)
        weights = open_weights(path)
        if len(weights.spec.layers) != self._layers or part.stop > self._layers:
            raise ClusterError(f"{path} has {len(weights.spec.layers)} layers, the head's model {self._layers}; fetch it again")
        return path, weights

    def hold(self, experts: Experts, memory: int = 0) -> ExpertBank:
        """memory: bytes that they may take; 0: what they need. Raises ShoalError, OSError."""
        if self._bank is None or self._bank.lacks(experts):
            layers = together([experts, {} if self._bank is None else self._bank.held])
            if not layers:
                raise LocalProtocolError("this node was told to hold no experts at all")
            self._activity = ""
            _, weights = self._opened(range(min(layers), max(layers) + 1))
            self._bank = self._bank or ExpertBank(weights.spec, self._precision, self._threads, self._isa, self._finder)
            self._bank.hold(experts, weights, memory)
        return self._bank

    def free(self, wanted: Experts) -> None:
        if self._bank is not None:
            self._bank.shed(wanted)

    def unpacked(self, layers: list[int]) -> dict[int, Path]:
        """Raises ShoalError, OSError."""
        if self._packed_folder is None or not layers:
            return {}
        _, weights = self._opened(range(min(layers), min(max(layers) + 1, self._layers)))
        files = self._packed(weights)
        return {layer: files.path(layer) for layer in layers if not files.made(layer)}

    def usable(self, layer: int) -> bool:
        assert self._files is not None
        try:
            return self._files.usable(layer)
        finally:
            self._files.close()

    @property
    def packed(self) -> dict[int, Path]:
        if self._files is None or not self._listed:
            return {}
        paths = {layer: self._files.path(layer) for layer in range(self._layers + 1)}
        return {layer: path for layer, path in paths.items() if path.exists()}

    def _tokenizer(self) -> Path:
        """Where the model's tokenizer is."""
        if self._read is None:
            raise ClusterError("the model's last layers are not here")
        return self._read

    def _here(self, part: range) -> Path:
        """The path to open for some layers: their origin's, if this machine and its peers did not have all of it."""
        ends = part.start == 0, part.stop == self._layers
        if (path := self._manifest.located(part, *ends)) is not None:
            return path
        missing = self._manifest.missing(part, *ends)
        path = pull_layers(self._reference, part, *ends)
        left = {file.name for file in self._manifest.missing(part, *ends)}
        self._listed = self._listed and self._manifest.located(part, *ends) is not None
        self._from_origin += sum(file.size for file in missing if file.name not in left)
        return path

    def _packed(self, weights: Weights) -> PackedLayers:
        assert self._packed_folder is not None and isinstance(weights, StoredWeights)
        self._files = PackedLayers.of(weights, self._packed_folder, self._precision, self._threads, self._tell)
        return self._files

    def _tell(self, line: str) -> None:
        self._activity = line
        self._told(line)

    def enter(self, layers: range, keep: range, blocks: int, memory: int = 0, remote: RemoteExperts | None = None) -> StageExecutor:
        return self._shard.enter(layers, keep, blocks, memory, remote)

    def rest(self) -> None:
        self._shard.rest()

    def close(self) -> None:
        if self._bank is not None:
            self._bank.close()
            self._bank = None
        self._shard.close()
        self._grammars.close()

    def report(self, report: control.PipelineReport) -> None:
        report.activity = self._activity
        counters = self._shard.counters
        report.resident = self._grammars.resident
        report.journal_bytes = self._shard.journal_bytes
        report.journal_spilled, report.journal_given_up = counters.spilled, counters.given_up
        report.fetched_from_origin = self._from_origin
        report.journal_replayed = counters.replayed
        if self._shard.runtime:  # it has layers
            counts = self._shard.part_counts
            report.decoding = [control.ComputeParts(**asdict(counts.decoding))]
            report.prompts = [control.ComputeParts(**asdict(counts.prompts))]
