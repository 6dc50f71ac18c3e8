"""What a policy holds in each tier, and how much of the weights fits beside it."""

from __future__ import annotations

from shoal.errors import NotEnoughMemory
from shoal.placement.cost import ModelCost
from shoal.placement.hardware import Hardware
from shoal.placement.steps import Steps
from shoal.placement.workload import Policy


class Room:
    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.model: ModelCost = steps.model
        self.hardware: Hardware = steps.hardware

    def beside(self, policy: Policy, streams: bool) -> list[float]:
        """[tiers] bytes besides weights and their buffers. streams: whether any weights are streamed; then prompts are computed
        layer by layer, and the rows of all of them lie between two layers, in the tiers of both devices."""
        model, work = self.model, self.steps.workload
        feeding, attending = self.hardware.device(policy.feed_forward).tier, self.hardware.device(policy.attention).tier
        here = self.hardware.devices[0].tier
        rows = max(self.steps.chunk(policy.micro), policy.micro)
        used = [0.0] * len(self.hardware.tiers)
        used[here] += model.last_bytes
        if feeding == here:
            used[here] += max(model.workspace, rows * model.row_bytes)
        else:
            used[here] += model.workspace
            used[feeding] += rows * model.row_bytes
        for tier in {feeding, attending} if streams else ():
            used[tier] += policy.batch * work.prompt * model.activation_bytes
        kv = policy.batch * self.steps.kv_held * self.steps.kv_ratio(policy)
        used[attending] += kv * policy.kv_share
        layer = self.steps.kv_layer * self.steps.kv_ratio(policy) * policy.micro
        if policy.kv_share < 1:
            used[attending - 1] += kv * (1 - policy.kv_share)
            used[attending] += 2 * layer * (work.prompt + work.answer)
        if feeding != attending:
            used[feeding] += 2 * layer * work.prompt
        return used

    def weights(self, policy: Policy) -> tuple[int, ...] | NotEnoughMemory:
        """[tiers] the most weights that can be held, from the tier of the feed-forward's device downwards; what it lacks if the
        slowest tier cannot take the rest. `policy.weight_bytes` is not looked at."""
        whole, feeding = self.beside(policy, streams=False), self.hardware.device(policy.feed_forward).tier
        total = self.model.held_bytes
        roomy = all(taken <= tier.size for taken, tier in zip(whole, self.hardware.tiers, strict=True))
        if roomy and whole[feeding] + total <= self.hardware.tiers[feeding].size:
            return tuple(total if tier == feeding else 0 for tier in range(len(self.hardware.tiers)))
        used = self.beside(policy, streams=True)
        for tier, taken in list(zip(self.hardware.tiers, used, strict=True))[feeding + 1 :]:
            if taken > tier.size:
                return NotEnoughMemory(round(taken), tier.size, f"keys and values in the {tier.name}")
        out, held, rows = [0] * len(self.hardware.tiers), 0, None if policy.ahead else policy.batch
        for tier in range(feeding, -1, -1):
            copied = tier < feeding and held < total and self.hardware.links[tier].copies > 0
            taken = used[tier] + (self.steps.streaming.buffers(held, rows) if copied else 0.0)
            size = self.hardware.tiers[tier].size
            fits = self._most(size - taken, held, rows, tier > 0)
            if fits < 0 or (tier == 0 and fits < total - held):
                missing = -fits if fits < 0 else total - held - fits
                return NotEnoughMemory(round(size + missing), size, f"the model in the {self.hardware.tiers[tier].name}")
            out[tier] = total - held if fits >= total - held else int(fits)
            held += out[tier]
        return tuple(out)

    def _most(self, room: float, held: int, rows: int | None, buffered: bool) -> float:
        """Buffers for whole layers never take more than a step's experts might, and the other way round: the smaller count."""
        whole = self.steps.streaming.most(room, held, None, buffered)
        return whole if rows is None else max(whole, self.steps.streaming.most(room, held, rows, buffered))
