"""Places on Ray's machines: bundles of resources in placement groups, spread over as many machines as there are."""

from __future__ import annotations

import dataclasses
from typing import Any

from shoal.ray_cluster.api import sdk, strategies, util

Bundle = dict[str, float]


@dataclasses.dataclass(eq=False)
class RayPlace:
    """group: Ray's placement group, of which this is the bundle number `index`."""

    group: Any
    index: int
    bundle: Bundle

    @property
    def options(self) -> dict[str, Any]:
        """Of an actor that is to run here, and to be made again whenever Ray loses it."""
        return {
            "num_cpus": self.bundle.get("CPU", 0),
            "memory": self.bundle.get("memory"),
            "scheduling_strategy": strategies.PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.index),
            "max_restarts": -1,
        }


class Places:
    """Those of one cluster. Ray's autoscaler is asked for machines that hold all of them, for as long as they are kept."""

    def __init__(self) -> None:
        self._used: list[RayPlace] = []
        self._free: list[RayPlace] = []

    def take(self, bundles: list[Bundle]) -> list[RayPlace]:
        """Places for all of these; nothing is waited for. Those that were given back are used first."""
        taken: list[RayPlace] = []
        missing: list[Bundle] = []
        for bundle in bundles:
            found = next((place for place in self._free if place.bundle == bundle), None)
            if found is None:
                missing.append(bundle)
            else:
                self._free.remove(found)
                taken.append(found)
        if missing:
            group = util.placement_group(missing, strategy="SPREAD")
            taken += [RayPlace(group, index, bundle) for index, bundle in enumerate(missing)]
        self._used += taken
        self._ask()
        return taken

    def give_back(self, place: RayPlace) -> None:
        """A group of which nothing is used is given back to Ray."""
        self._used.remove(place)
        self._free.append(place)
        if not any(used.group is place.group for used in self._used):
            util.remove_placement_group(place.group)
            self._free = [free for free in self._free if free.group is not place.group]
        self._ask()

    def give_all_back(self) -> None:
        for place in [*self._used]:
            self.give_back(place)

    def _ask(self) -> None:
        sdk.request_resources(bundles=[place.bundle for place in self._used])
