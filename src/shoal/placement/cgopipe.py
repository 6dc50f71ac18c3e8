"""Orders in which a step of many sequences can run while its weights are streamed.

`cgopipe` is the schedule of MoE-Lightning (arXiv 2411.11217, section 4.1). While one micro-batch is in its experts, attention of the
next one runs elsewhere, and the one after that is prepared. The next layer's weights come in pages between the small transfers of
activations, which would wait behind a whole layer. `whole_layers`, `in_turn` and `serial` leave out one of these, the other, or all;
they are there to be compared with.

`experts_once` is for weights that come from a disk to a processor that runs everything. Nothing is gained by micro-batches there: each
page's experts run once for all rows, and the next page can come into its slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shoal.placement.operations import Kind, Operation


@dataclass(frozen=True)
class PipeSetting:
    """Raises ValueError for numbers below 1."""

    layers: int
    micro_batches: int
    pages: int
    """Of each layer. The first one holds what attention needs, unless `experts_once` runs them: that holds it all the time."""
    slots: int
    """Pages in memory at once."""
    resources: Mapping[Kind, str]
    """Where each kind runs. Without OFFLOAD and BRING_BACK attention runs where the rest does."""

    def __post_init__(self) -> None:
        if min(self.layers, self.micro_batches, self.pages, self.slots) < 1:
            raise ValueError("layers, micro-batches, pages and slots are at least 1")


GPU = {
    Kind.LOAD: "link",
    Kind.BEFORE_ATTENTION: "gpu",
    Kind.OFFLOAD: "link back",
    Kind.ATTENTION: "processor",
    Kind.BRING_BACK: "link",
    Kind.AFTER_ATTENTION: "gpu",
    Kind.EXPERTS: "gpu",
}
"""Weights in the machine's memory, experts on a GPU, attention on the processor."""
DISK = {
    Kind.LOAD: "disk",
    Kind.BEFORE_ATTENTION: "processor",
    Kind.ATTENTION: "processor",
    Kind.AFTER_ATTENTION: "processor",
    Kind.EXPERTS: "processor",
}
"""Weights on disk, everything on the processor."""


def cgopipe(setting: PipeSetting) -> list[Operation]:
    """Raises ValueError if the slots do not hold a layer."""
    return _by_micro_batch(setting, ahead=3, paged=True)


def whole_layers(setting: PipeSetting) -> list[Operation]:
    """Attention runs beside experts, but all of the next layer comes before anything else of this one does."""
    return _by_micro_batch(setting, ahead=3, paged=False)


def in_turn(setting: PipeSetting) -> list[Operation]:
    """The next layer comes in pages, but micro-batches go from attention to experts one after the other."""
    return _by_micro_batch(setting, ahead=1, paged=True)


def serial(setting: PipeSetting) -> list[Operation]:
    """One thing after the other."""
    program = _by_micro_batch(setting, ahead=1, paged=True)
    return [operation._replace(needs=(*operation.needs, at - 1) if at else ()) for at, operation in enumerate(program)]


def _by_micro_batch(setting: PipeSetting, ahead: int, paged: bool) -> list[Operation]:
    """ahead: micro-batches on their way at once, from before attention to the end of their experts. paged: whether other transfers come between pages."""
    if setting.slots < setting.pages:
        raise ValueError(f"{setting.slots} slots do not hold the {setting.pages} pages of a layer")
    program = _Program(setting, last=setting.micro_batches - 1)
    turns = [(layer, batch) for layer in range(setting.layers) for batch in range(setting.micro_batches)]
    prepared = 0
    for turn, (layer, batch) in enumerate(turns):
        program.load_until((layer + 1) * setting.pages)
        while prepared < min(turn + ahead, len(turns)) and program.can_prepare(*turns[prepared]):
            at, micro_batch = turns[prepared]
            before = [(Kind.EXPERTS, at - 1, micro_batch)] if at else []
            program.prepare(at, micro_batch, [*before, (Kind.LOAD, at, 0)])
            prepared += 1
        so_far = setting.pages * (batch + 1) // setting.micro_batches if paged else setting.pages
        program.load_until((layer + 1) * setting.pages + so_far)
        program.after_attention(layer, batch)
        loads = [(Kind.LOAD, layer, page) for page in range(setting.pages)]
        program.put(Kind.EXPERTS, layer, batch, [(Kind.AFTER_ATTENTION, layer, batch), *loads])
    return program.operations


def experts_once(setting: PipeSetting) -> list[Operation]:
    program = _Program(setting)
    batches, pages = range(setting.micro_batches), range(setting.pages)
    for layer in range(setting.layers):
        for batch in batches:
            program.load_until(setting.layers * setting.pages)
            program.prepare(layer, batch, [(Kind.EXPERTS, layer - 1, page) for page in pages] if layer else [])
            program.after_attention(layer, batch)
        routed = [(Kind.AFTER_ATTENTION, layer, batch) for batch in batches]
        for page in pages:
            program.put(Kind.EXPERTS, layer, page, [*routed, (Kind.LOAD, layer, page)])
            program.load_until(setting.layers * setting.pages)
    return program.operations


_Name = tuple[Kind, int, int]
"""An operation's kind, layer and part."""


class _Program:
    """last: the micro-batch after whose experts a layer's pages may go; None: each goes after its own experts."""

    def __init__(self, setting: PipeSetting, last: int | None = None) -> None:
        self._setting, self._last = setting, last
        self.operations: list[Operation] = []
        self._at: dict[_Name, int] = {}
        self._loaded = 0
        """Pages, counted over all layers."""

    def put(self, kind: Kind, layer: int, part: int, needs: Iterable[_Name]) -> None:
        self._at[kind, layer, part] = len(self.operations)
        self.operations.append(Operation(kind, self._setting.resources[kind], layer, part, tuple(self._at[name] for name in needs)))

    def load_until(self, end: int) -> None:
        """Loads the pages before `end`, as far as the program frees slots for them."""
        pages, slots = self._setting.pages, self._setting.slots
        while self._loaded < min(end, self._setting.layers * pages):
            freed = [self._gone(self._loaded - slots)] if self._loaded >= slots else []
            if any(name not in self._at for name in freed):
                return
            self.put(Kind.LOAD, *divmod(self._loaded, pages), freed)
            self._loaded += 1

    def _gone(self, page: int) -> _Name:
        """After what a page's slot is free."""
        layer, part = divmod(page, self._setting.pages)
        return Kind.EXPERTS, layer, part if self._last is None else self._last

    def can_prepare(self, layer: int, batch: int) -> bool:
        return (Kind.LOAD, layer, 0) in self._at and (layer == 0 or (Kind.EXPERTS, layer - 1, batch) in self._at)

    def prepare(self, layer: int, batch: int, needs: Iterable[_Name]) -> None:
        self.put(Kind.BEFORE_ATTENTION, layer, batch, needs)
        done = Kind.BEFORE_ATTENTION
        if Kind.OFFLOAD in self._setting.resources:
            self.put(Kind.OFFLOAD, layer, batch, [(done, layer, batch)])
            done = Kind.OFFLOAD
        self.put(Kind.ATTENTION, layer, batch, [(done, layer, batch)])

    def after_attention(self, layer: int, batch: int) -> None:
        done = Kind.ATTENTION
        if Kind.BRING_BACK in self._setting.resources:
            self.put(Kind.BRING_BACK, layer, batch, [(done, layer, batch)])
            done = Kind.BRING_BACK
        self.put(Kind.AFTER_ATTENTION, layer, batch, [(done, layer, batch)])
