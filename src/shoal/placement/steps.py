"""How long the steps of a model take on a machine under a policy, and which resource is the limit.

A device does one computation after the other, each as long as the larger of its two times (`roofline.busy`). Devices and links work at
once: a step takes as long as the busiest of them, plus what the schedule cannot hide. That is the wait for experts that are read only
once the router has chosen them, and, with a single micro-batch, the time of one device while the other waits for its results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.placement.cost import ExpertsCost, LayerCost, ModelCost
from shoal.placement.hardware import ATTENTION, WEIGHTS, Device, Hardware, TierLink, precision
from shoal.placement.roofline import Busy
from shoal.placement.streaming import StreamedWeights
from shoal.placement.workload import KV_ELEMENT, Policy, Workload

_FIRST_HALF = 2 / 3
"""Of an expert's arithmetic: gate and up, two of three matrices. Down is computed when all experts of a layer have come."""

_SPREAD = 64
"""Rows of a step up to which it counts how they are spread over the experts; beyond, each of these gets the mean."""


@dataclass(frozen=True)
class StepTime:
    """A decode step, or all prompts of a batch."""

    seconds: float
    utilisation: Mapping[str, float]
    """Of each device and link: the part of the time that it works."""
    full: str
    """The device or link that works the most. It works all the time, unless the schedule makes it wait."""
    limit: str
    """What would have to be faster: 'disk', 'link', 'processor', 'memory', …; a tier where the full device waits for it more than it
    computes."""


def mean_context(first: int, end: int, window: int) -> float:
    """Tokens that a row attends to, averaged over the positions first to end - 1 of a sequence. window: 0 for all."""
    if not window or end <= window:
        return (first + 1 + end) / 2
    full = max(first, window)
    rising = (window - first) * (first + 1 + window) / 2 if first < window else 0.0
    return (rising + (end - full) * window) / (end - first)


class Steps:
    def __init__(self, model: ModelCost, hardware: Hardware, workload: Workload) -> None:
        self.model, self.hardware, self.workload = model, hardware, workload
        self.streaming = StreamedWeights(model)
        self._multiplied: dict[tuple[str, int], tuple[list[Busy], list[Busy], Busy]] = {}
        self._attended: dict[tuple[str, int, float], Busy] = {}
        tokens, groups = workload.prompt + workload.answer, self.streaming.groups
        self.kv_held = sum(layer.kv_read(tokens) * count for layer, count in groups)
        """Bytes of a request's keys and values at the end of its answer, as `ModelCost` counts them."""
        self.kv_read = sum(layer.kv_bytes * self._context(layer) * count for layer, count in groups)
        """Bytes that a row reads of them in the middle of the answer."""
        self.kv_layer = max(layer.kv_bytes for layer in model.layers)
        """Bytes of a token's in the layer that has the most."""

    def _multiply(self, device: Device, rows: int) -> tuple[list[Busy], list[Busy], Busy]:
        """With the matrices of each group's layer that every row needs, with its experts, and with the head."""
        key = device.name, rows
        if key not in self._multiplied:
            always, experts = list[Busy](), list[Busy]()
            for i, (layer, _) in enumerate(self.streaming.groups):
                mine = layer.always
                once = device.busy(mine.size, mine.flops(rows), device.curve(precision(mine.bits)).at(rows), WEIGHTS, rows)
                always.append(once + Busy(other=device.layer_seconds))
                if layer.experts is None:
                    experts.append(Busy())
                    continue
                experts.append(self._experts(device, i, layer.experts, rows))
            head = self.model.head
            last = device.busy(head.size, head.flops(rows), device.curve(precision(head.bits)).at(rows), WEIGHTS, rows)
            self._multiplied[key] = always, experts, last
        return self._multiplied[key]

    def _experts(self, device: Device, group: int, experts: ExpertsCost, rows: int) -> Busy:
        """With a layer's. A core goes through one after the other, each with its own rows, which matters while they are few."""
        each, curve = experts.each, device.curve(precision(experts.each.bits))
        if device.reading and rows <= _SPREAD:
            total = Busy()
            for n, count in experts.spread(rows).items():
                total += device.busy(each.size, each.flops(n), curve.at(n), WEIGHTS, n).times(count)
            return total
        touched, chosen = self.streaming.missed_experts(group, rows, 0), rows * experts.chosen
        return device.busy(touched * each.size, each.flops(chosen), curve.at(chosen / touched), WEIGHTS, chosen / touched)

    def _attend(self, device: Device, rows: int, kv_ratio: float) -> Busy:
        """Of all layers, at the middle of the answers."""
        key = device.name, rows, kv_ratio
        if key not in self._attended:
            total = Busy()
            for layer, count in self.streaming.groups:
                context, speed = self._context(layer), device.curve(ATTENTION).at(layer.sharing)
                read = rows * layer.kv_bytes * kv_ratio * context
                total += device.busy(read, rows * layer.attention * context, speed, ATTENTION, 1).times(count)
            self._attended[key] = total
        return self._attended[key]

    def _context(self, layer: LayerCost) -> float:
        prompt, answer = self.workload.prompt, self.workload.answer
        return mean_context(prompt, prompt + answer, layer.window)

    def kv_ratio(self, policy: Policy) -> float:
        return KV_ELEMENT[policy.kv_type] / self.model.kv_element

    def chunk(self, micro: int) -> int:
        """Rows of a prompt that are computed at once."""
        whole = micro * self.workload.prompt
        return min(self.workload.chunk, whole) if self.workload.chunk else whole

    def decode(self, policy: Policy) -> StepTime:
        device, attending = self.hardware.device(policy.feed_forward), self.hardware.device(policy.attention)
        batches = policy.micro_batches
        always, experts, head = self._multiply(device, policy.micro)
        working = {attending.name: Busy()} | {device.name: head.times(batches)}
        for (_, count), one, chosen in zip(self.streaming.groups, always, experts, strict=True):
            working[device.name] += (one + chosen).times(count * batches)
        working[attending.name] += self._attend(attending, policy.micro, self.kv_ratio(policy)).times(batches)
        carried = self._weights_carried(policy)
        reads, alone_reads = self._reads(policy)
        for i, (layer, count) in enumerate(self.streaming.groups):
            if layer.experts is not None and self._missed(policy, i):
                working[device.name] += Busy(other=count * batches * device.chosen_seconds)
        sending = [float(count) for count in alone_reads]
        if attending.tier:
            missing = policy.batch * (1 - policy.kv_share) * self.kv_ratio(policy)
            carried[attending.tier - 1] += missing * self.kv_read
            sending[attending.tier - 1] += len(self.model.layers) * batches if missing else 0
        for link in range(*sorted((attending.tier, device.tier))):
            carried[link] += policy.batch * self.model.activation_bytes * len(self.model.layers)
            sending[link] += len(self.model.layers) * batches
        alone = batches == 1 or device is attending
        exposed = 0.0 if policy.ahead else self._exposed(policy, [chosen.times(batches) for chosen in experts])
        return self._step(working, carried, sending, alone, exposed, reads, alone_reads)

    def prefill(self, policy: Policy) -> StepTime:
        """Of all prompts of a batch, layer by layer: streamed weights are read once for all of them."""
        device, prompt = self.hardware.device(policy.feed_forward), self.workload.prompt
        rows, chunk = policy.batch * prompt, self.chunk(policy.micro)
        chunks = rows / chunk
        always, experts, _ = self._multiply(device, chunk)
        head = self._multiply(device, policy.micro)[2]
        working = head.times(policy.micro_batches)
        for (layer, count), one, chosen in zip(self.streaming.groups, always, experts, strict=True):
            context, speed = mean_context(0, prompt, layer.window), device.curve(ATTENTION).at(min(chunk, prompt) * layer.sharing)
            read = layer.kv_bytes * self.kv_ratio(policy) * context * rows / min(chunk, prompt)
            attended = device.busy(read, rows * layer.attention * context, speed, ATTENTION, min(chunk, prompt))
            working += ((one + chosen).times(chunks) + attended).times(count)
        carried = self._weights_carried(policy, rows)
        reads, alone_reads = self._reads(policy, rows)
        return self._step({device.name: working}, carried, alone_reads, True, 0.0, reads, alone_reads)

    def _weights_carried(self, policy: Policy, rows: int = 0) -> list[float]:
        """[links] bytes of weights. rows: of the prompts, which read what they miss; 0 for a decode step."""
        out, held = [0.0] * len(self.hardware.links), 0
        for tier in range(self.hardware.device(policy.feed_forward).tier, 0, -1):
            held += policy.weight_bytes[tier]
            if policy.ahead and not rows:
                out[tier - 1] = float(self.streaming.total - held)
            else:
                out[tier - 1] = self.streaming.missed(rows or policy.batch, held)
        return out

    def _shares(self, policy: Policy) -> list[tuple[int, float, float]]:
        """Links that weights come over, each with the shares of what every row needs and of the experts that are held above it."""
        out, held = list[tuple[int, float, float]](), 0
        for tier in range(self.hardware.device(policy.feed_forward).tier, 0, -1):
            held += policy.weight_bytes[tier]
            out.append((tier - 1, *self.streaming.shares(held)))
        return out

    def _missed(self, policy: Policy, group: int) -> float:
        """The expected experts of a layer that a step reads from the tier below."""
        return max((self.streaming.missed_experts(group, policy.batch, share) for _, _, share in self._shares(policy)), default=0.0)

    def _reads(self, policy: Policy, rows: int = 0) -> tuple[list[float], list[float]]:
        """[links] reads of a step, and those of them that are the only one under way: of what every row needs, a layer at a time."""
        every, alone = [0.0] * len(self.hardware.links), [0.0] * len(self.hardware.links)
        for at, always, share in self._shares(policy):
            alone[at] = (1 - always) * len(self.model.layers)
            missed = (
                self.streaming.missed_experts(i, rows or policy.batch, share) * count for i, (_, count) in enumerate(self.streaming.groups)
            )
            every[at] = alone[at] + sum(missed)
        return every, alone

    def _taking(self, link: TierLink, size: float, reads: float) -> float:
        """Seconds of the processor for what came over a link."""
        return size * link.copies / self.hardware.devices[0].bytes_per_second + reads * link.read_seconds

    def _exposed(self, policy: Policy, experts: list[Busy]) -> float:
        """Seconds of a step in which nothing is left to compute before a missed expert arrives. experts: seconds of each group's
        layer, of which the second half waits until the last of them is there. The last expert that arrives is computed alone."""
        total = 0.0
        for i, (layer, count) in enumerate(self.streaming.groups):
            if layer.experts is None:
                continue
            size, touched = layer.experts.each.size, self.streaming.missed_experts(i, policy.batch, 0)
            slowest = waits = taking = 0.0
            for at, _, share in self._shares(policy):
                link, missed = self.hardware.links[at], self.streaming.missed_experts(i, policy.batch, share)
                slowest = max(slowest, missed * size / link.bytes_per_second)
                waits += link.seconds * (1 - max(1 - missed / touched, 0.0) ** touched)  # whether any is missed
                taking += self._taking(link, missed * size, missed)
            if slowest:
                meanwhile = _FIRST_HALF * experts[i].seconds + taking
                last = (_FIRST_HALF * experts[i].seconds + taking) / touched
                total += count * max(slowest + waits + last - meanwhile, 0.0)
        return total

    def _step(
        self,
        working: dict[str, Busy],
        carried: list[float],
        sending: list[float],
        alone: bool,
        exposed: float,
        reads: list[float],
        alone_reads: list[float],
    ) -> StepTime:
        """alone: whether devices work one after the other. sending: of each link, how often the devices wait for its first byte. reads:
        those of weights; a link that makes one at a time rests while it is taken."""
        processor = self.hardware.devices[0]
        resting = 0.0
        for size, count, one, link in zip(carried, reads, alone_reads, self.hardware.links, strict=True):
            if size:
                copying = Busy(memory=self._taking(link, size, 0), other=count * link.read_seconds)
                working[processor.name] = working.get(processor.name, Busy()) + copying
                resting = max(resting, copying.seconds * one / count if count else 0.0)
        times = {name: found.seconds for name, found in working.items()}
        devices = sum(times.values()) if alone else max(times.values())
        for size, often, link in zip(carried, sending, self.hardware.links, strict=True):
            times[link.name] = size / link.bytes_per_second + often * link.seconds
        full = max(times, key=lambda name: times[name])
        seconds = max(times[full], devices + exposed)
        if full not in working:
            seconds = max(seconds, times[full] + resting)
        limit = full
        if full in working and working[full].memory > working[full].arithmetic + working[full].other:
            limit = self.hardware.tiers[self.hardware.device(full).tier].name
        return StepTime(seconds, {name: time / seconds for name, time in times.items()}, full, limit)
