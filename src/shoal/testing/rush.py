"""Long prompts beside running answers, on a pipeline of one to four stages: no answer waits long for somebody else's prompt.

A seed decides the stages, their speeds, the errors of their own measurements, and which requests come when. Steps take
simulated time that grows with their rows and with what these attend to; each is up to half longer or shorter than it should be.
"""

from __future__ import annotations

import asyncio
from math import exp, log
from random import Random

from shoal.config import EngineSettings, HeadSettings
from shoal.errors import NotReady
from shoal.node.coordinator import Coordinator
from shoal.node.observer import Served
from shoal.pipeline_id import PipelineId
from shoal.request import Request, RequestId, SamplingParams
from shoal.testing import toy
from shoal.testing.network import SimWorld
from shoal.testing.scenario import Broken, Scenario

_CONTEXT = 1600
_SLOWEST = 0.02  # seconds of a stage for a row at the end of the context
_SLACK = 4.0  # how many times longer a prompt may take than the slowest stage needs for everything there


class Rush(Scenario):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        chance = Random(f"rush {seed}")
        self.stages = chance.randint(1, 4)
        self.layers = self.stages * chance.randint(1, 2)
        steep = chance.uniform(0, 20)  # how many times longer the last row of a context takes than the first
        row = _between(chance, 1e-4, _SLOWEST / (1 + steep))
        parts = self.layers / self.stages
        self.seconds = toy.Seconds(chance.uniform(1e-4, 0.004) / parts, row / parts, row * steep / _CONTEXT / parts, row * 0.2)
        self.waits: list[float] = []
        """Seconds between two tokens of an answer while other prompts were being computed."""
        self.shares: list[float] = []
        """Time to a prompt's first token, as a share of the time allowed for it."""
        self._chance = chance
        self._prompts = 0

    @property
    def speed(self) -> float:
        """The speed that nodes measure: up to four times too fast or too slow."""
        per_layer = max(self.seconds.row, 1e-6)
        return 2 * 1000 / per_layer * _between(self._chance, 0.25, 4)

    async def _play(self) -> None:
        chance = self._chance
        engine = EngineSettings(slots=16, kv_tokens=16000, context=_CONTEXT, step_tokens=256)
        settings = HeadSettings(engine=engine, host="head", min_nodes=self.stages, spread=True, pace=0, wait=1e6)
        head = SimWorld(self.network, self.network.host("head"))
        self.coordinator = coordinator = Coordinator(settings, head, self.counts)
        served = Served("toy", "toy", toy.cost(self.layers), _CONTEXT, settings.engine)
        coordinator.open(PipelineId("toy"), served, self.counts)
        await coordinator.start()
        for _ in range(self.stages):
            self._add_node(settings, 1.3)
            self._nodes[-1].speed = self.speed
        await coordinator.until_ready()
        clients = [self._answer(coordinator, i, chance.uniform(0, 1)) for i in range(chance.randint(1, 4))]
        lengths = [chance.randint(100, _CONTEXT - 8) for _ in range(chance.randint(1, 4))]
        work = sum(self._work(length) for length in lengths)
        for i, length in enumerate(lengths):
            clients.append(self._prompt(coordinator, i, chance.choice((1.0, chance.uniform(1, 3))), length, 1 + _SLACK * work))
        running = [asyncio.get_running_loop().create_task(client) for client in clients]
        try:
            await asyncio.gather(*running)
            self.check()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._end(coordinator)

    def _work(self, length: int) -> float:
        """Seconds that a stage takes for all rows of a prompt."""
        seconds = self.seconds
        return self.layers / self.stages * (seconds.row * length + seconds.context * length * length / 2) + seconds.logits * length

    async def _answer(self, coordinator: Coordinator, index: int, at: float) -> None:
        """An answer that continues until all prompts have been served."""
        request = Request(RequestId(f"answer-{index}"), [index % toy.VOCABULARY], 1200, SamplingParams(temperature=0.0))
        wanted, said, last = toy.alone(request, 0, self.layers), 0, 0.0
        await asyncio.sleep(at)
        stream = self.runner.submit(request)
        async for chunk in stream:
            now = self._loop.time()
            if chunk.token is not None:
                if chunk.token != (right := next(wanted, None)):
                    raise Broken(f"{request.id} says {chunk.token} after {said} tokens, and should say {right}")
                said += 1
                self.tokens += 1
            if said > 1 and self._prompts:
                self.waits.append(now - last)
                if now - last > coordinator.settings.engine.prompt_wait:
                    raise Broken(f"{request.id} waited {now - last:.3f} s for its token {said}")
            last = now
            if said > 1 and not self._prompts and now > 10:
                stream.close()
                return

    async def _prompt(self, coordinator: Coordinator, index: int, at: float, length: int, most: float) -> None:
        """most: seconds until its first token."""
        chance = self._chance
        scores = chance.choice((None, None, None, 0))
        request = Request(
            RequestId(f"prompt-{index}"),
            [chance.randrange(toy.VOCABULARY) for _ in range(length)],
            chance.randint(1, 8),
            SamplingParams(temperature=0.0),
            prompt_logprobs=scores,
        )
        wanted, said = toy.expected(request, self.layers)[0], list[int]()
        await asyncio.sleep(at)
        began = self._loop.time()
        self._prompts += 1
        self.say(f"{request.id} comes: {length} tokens")
        try:
            stream = self.runner.submit(request)
        except NotReady as error:
            raise Broken(f"{request.id} is refused: {error}") from error
        async for chunk in stream:
            if chunk.token is not None:
                if not said:
                    took = self._loop.time() - began
                    self.say(f"{request.id} has its first token after {took:.2f} s")
                    self.shares.append(took / most)
                    if took > most:
                        raise Broken(f"{request.id} has its first token after {took:.2f} s, where {most:.2f} should be enough")
                said.append(chunk.token)
        if said != wanted:
            raise Broken(f"{request.id} says {said}, and should say {wanted}")
        self._prompts -= 1


def _between(chance: Random, low: float, high: float) -> float:
    """A random value; twice a value is as likely as half of it."""
    return exp(chance.uniform(log(low), log(high)))
