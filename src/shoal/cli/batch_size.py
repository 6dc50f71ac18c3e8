"""How many requests of a batch run at once on this machine: as many as give the most tokens per second."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from shoal.cli.show import line
from shoal.config import EngineSettings, NodeSettings
from shoal.errors import NotEnoughMemory
from shoal.executor.cost import model_cost
from shoal.executor.hardware_files import read_hardware
from shoal.executor.kept_plans import search_once
from shoal.executor.machine_profile import remembered
from shoal.executor.measure import usable_memory
from shoal.models.description import Description
from shoal.placement.policy import Grid
from shoal.placement.workload import Workload

MOST = 256
_INTERACTIVE = 4
_SPARE = 1.25
"""Keys and values for so many times the average request, because some are longer."""


@dataclass
class Work:
    """One request or more, in tokens, about: before a tokenizer is there, three characters count as one."""

    requests: int = 0
    prompts: int = 0
    answers: int = 0
    longest: int = 0
    """Most of a prompt and its answer, more than which it hardly has."""

    def add(self, characters: int, answer: int) -> None:
        """answer: most tokens of it."""
        self.requests += 1
        self.prompts += max(characters // 3, 1)
        self.answers += answer
        self.longest = max(self.longest, 2 * characters // 3 + 64 + answer)  # a token has seldom less than one and a half characters


def fitted(engine: EngineSettings, work: Work, size: int) -> EngineSettings:
    """With as many slots, room for their keys and values, and prompts in steps as large as can be: nobody waits for a single token."""
    tokens = max(int(size * (work.prompts + work.answers) / work.requests * _SPARE), min(work.longest, engine.context))
    rows = max(engine.step_tokens, 2 * size)  # prompts get as many as the requests that run
    return dataclasses.replace(engine, slots=size, kv_tokens=engine.kv_tokens or tokens, step_tokens=rows, prompt_wait=0.0)


def chosen(
    model: Description, engine: EngineSettings, node: NodeSettings, nodes: int, work: Work, strategy: str = "auto", hardware: str = ""
) -> int:
    """Requests at once: few, if the first answer is to be soon, all, if all of them are to be, or as many as give the most tokens per
    second by this machine's profile, or another one. At most `--slots`, where it is given. nodes: processes on this machine, each with
    its memory. Raises ConfigError, ShoalError."""
    most = min(work.requests, engine.slots if engine.slots != EngineSettings().slots else MOST)
    if strategy == "interactive":
        return min(most, _INTERACTIVE)
    known = read_hardware(hardware) if hardware else found.hardware if (found := remembered()) is not None else None
    if strategy == "throughput" or known is None:
        if known is None and strategy == "auto":
            line(f"this machine was not measured, so {most} run at once; `shoal doctor --measure` lets the number be chosen")
        return most
    cost = model_cost(model.spec, model.weights, engine.precision, engine.kv_type, engine.step_tokens)
    memory = usable_memory(node) * (nodes if node.memory else 1)
    tiers = tuple(dataclasses.replace(tier, size=memory) if tier.name == "memory" else tier for tier in known.tiers)
    prompt, answer = (max(tokens // work.requests, 1) for tokens in (work.prompts, work.answers))
    workload = Workload(prompt, answer, most, engine.step_tokens, (engine.kv_type,))
    try:
        found = search_once(cost, dataclasses.replace(known, tiers=tiers), workload, Grid(Grid.of(most).micro, (1,), (1.0,)))
    except NotEnoughMemory:  # nodes say what is missing, when they are started
        return most
    return found.policy.batch
