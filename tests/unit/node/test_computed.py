"""What nodes tell of their computing is what operators see, under the names that they have."""

from __future__ import annotations

from shoal.control import messages as control
from shoal.executor.journal import JournalLimits
from shoal.node.cluster_view import machine_view
from shoal.node.environment import Model
from shoal.observed.cluster import MachineView
from shoal.observed.computing import Computed, ComputeParts
from shoal.testing import toy
from tests.support.town import LAYERS, Town, play


class Counting(toy.ToyModel):
    """Says that a second was spent with every report."""

    beats = 0

    def report(self, report: control.PipelineReport) -> None:
        super().report(report)
        self.beats += 1
        report.decoding = [control.ComputeParts(attention=float(self.beats))]
        report.prompts = [control.ComputeParts(head=0.5)]


class Village(Town):
    """b is of a version that tells nothing."""

    def model(self, name: str, order: control.Load) -> Model:
        return super().model(name, order) if name == "b" else Counting(LAYERS, JournalLimits(1 << 20, 0))

    def seen(self) -> dict[str, MachineView]:
        head = self.head
        return {
            name: machine_view(state, head.pipeline, head.roster, head.recorder.now())
            for name, state in head.topology().nodes.items()
            if state.number in head.roster.machines
        }


def test_operators_see_what_a_node_told_last_also_when_it_gets_another_name():
    async def scenario(town: Village) -> None:
        for name in "ab":
            town.start(name)
        await town.serving(2)

        def told(name: str, least: float) -> Computed | None:
            found = town.seen()[name].computed
            return found if found is not None and found.decoding.attention >= least else None

        await town.until(lambda: told("a", 2.0))
        first = town.seen()["a"].computed
        assert first is not None
        assert first.prompts == ComputeParts(head=0.5) and first.decoding == ComputeParts(attention=first.decoding.attention)
        assert town.seen()["b"].computed is None
        town.head.rename("a", "c")
        assert town.seen()["c"].computed == first
        await town.until(lambda: told("c", first.decoding.attention + 1))
        await town.kill("a")
        await town.until(lambda: len(town.head.cluster.members) == 1)
        assert town.head.roster.reports.keys() == {"b"}

    play(scenario, Village, min_nodes=2, spread=True)
