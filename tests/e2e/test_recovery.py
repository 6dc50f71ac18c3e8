"""Streams go on, token for token, whatever becomes of the nodes: real processes on machines of their own, trained weights.

Each machine is a network namespace with one cable, and proxies at its plug (tests/support/machines.py); so a node can be killed,
frozen, unplugged or have single links cut, by nothing that the product knows of. One cluster serves all cases: four nodes, so that
there are three stages and mostly a spare, whoever was lost a moment ago.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx2 as httpx
import pytest

from shoal.control.client import describe
from shoal.control.messages import NodeDescription
from tests.support.cluster import BOUND, Cluster, cluster, until
from tests.support.machines import Machine, possible

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not possible(), reason="network namespaces need root and iproute2"),
]

STORIES = [f"Write a long story about a sailor and {i} whales, in many words." for i in range(2)]
DRAWN = [
    {"temperature": 0.9, "seed": 7, "n": 2, "logprobs": True, "top_logprobs": 3, "frequency_penalty": 0.4},
    {"temperature": 1.2, "top_p": 0.9, "seed": 5, "presence_penalty": 0.5, "logit_bias": {"28": -5}},
    {"temperature": 0.7, "seed": 11, "stop": [" wares", " elusive"], "n": 3},
    {"temperature": 0, "logprobs": True, "top_logprobs": 1},
]
NAMES = ["Ann Bob", "Eve Flo", "Ida Jon", "Mia Ned"]
LONG = [[f"Sum up what {name} said. " + f"Then {name} spoke of ships and of the sea. " * 10 for name in names.split()] for names in NAMES]
"""Used in turn, so that none is found in the prefix cache: with the loss of a node all is forgotten that no stream holds."""
TOKENS, FEW = 28, 4
BEGUN = 10  # tokens that the stories have said when the long prompts come


def body_of(prompt: str, tokens: int, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, **fields}


async def drawn(client: httpx.AsyncClient, prompt: str, **fields: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/chat/completions", json=body_of(prompt, TOKENS, **fields))
    return answer.json()["choices"]


async def stream(client: httpx.AsyncClient, prompt: str, tokens: int, heard: list[str]) -> str:
    said: list[str] = []
    async with client.stream("POST", "/v1/chat/completions", json=body_of(prompt, tokens, stream=True)) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            piece = event["choices"][0]["delta"].get("content") or ""
            said.append(piece)
            if piece:
                heard.append(piece)
    return "".join(said)


class Said(NamedTuple):
    stories: list[str]
    drawn: list[list[dict[str, Any]]]
    long: list[str]


class Sea:
    """The cluster and its machines."""

    def __init__(self, made: Cluster) -> None:
        self.made = made
        self.machines: dict[str, Machine] = {}
        self._names = itertools.count()
        made.serve(
            *("--host", "0.0.0.0", "--unprotected", "--min-nodes", "4", "--spread", "--spares", "1"),
            *("--heartbeat", "0.25", "--kv-tokens", "4096", "--context", "2048"),
        )  # fmt: skip
        for _ in range(4):
            self.start()

    def start(self) -> None:
        name = f"n{next(self._names)}"
        self.machines[name] = Machine(self.made, name)

    def nodes(self) -> dict[str, NodeDescription]:
        self.described = asyncio.run(describe(f"127.0.0.1:{self.made.control_port}"))
        return {node.name: node for node in self.described.nodes}

    def member(self, name: str) -> bool:
        return name in self.nodes()

    def until_serving(self) -> list[str]:
        """The names of the first stage, one in the middle, and the last one, when it serves."""

        def route() -> list[str]:
            parts = [(part.first_layer, node.name) for node in self.nodes().values() for part in node.parts if part.end_layer]
            stages = [name for _, name in sorted(parts)]
            serving = self.described.pipelines[0].state.startswith("serving")
            return [stages[i] for i in (0, 1, -1)] if serving and len(stages) >= 3 else []

        return until(route, lambda: f"{self.described}\n{self.made.story()}", every=0.2)

    def ask(self, prompts: list[str], act: Callable[[], None] = lambda: None) -> Said:
        """Stories and draws are under way when the long prompts come; `act` is called, in a thread of its own, once these are computed."""

        async def all_of_them() -> Said:
            heard, early = list[str](), list[str]()
            async with httpx.AsyncClient(base_url=self.made.url, timeout=BOUND, trust_env=False) as client, asyncio.timeout(2 * BOUND):
                stories = [asyncio.ensure_future(stream(client, story, TOKENS, heard)) for story in STORIES]
                draws = [asyncio.ensure_future(drawn(client, STORIES[0], **fields)) for fields in DRAWN]
                while len(heard) < BEGUN:
                    assert not any(story.done() for story in stories), "a story ended before the long prompts came"
                    await asyncio.sleep(0.005)
                before = self.made.metric("sequences_running")
                long = [asyncio.ensure_future(stream(client, prompt, FEW, early)) for prompt in prompts]
                while self.made.metric("sequences_running") <= before:
                    assert not early, "the prompts were computed before anything could happen"
                    await asyncio.sleep(0.005)
                acting = asyncio.get_running_loop().run_in_executor(None, act)
                under_way: list[list[asyncio.Future[Any]]] = [[*stories], [*draws], [*long]]
                said = Said(*[await asyncio.gather(*each) for each in under_way])
                await acting
                return said

        try:
            return asyncio.run(all_of_them())
        except BaseException as error:
            error.add_note(self.made.story())
            raise

    def recovers(self, machine: Machine, what: str) -> None:
        """A node that lives comes back by itself, another one takes the place of one that does not; nothing is held any more."""
        until(lambda: what == "killed" or self.member(machine.name), self.made.story, every=0.2)
        machine.lost += 1
        if what == "killed" or machine.lost == 2:  # the cluster holds off a node that is lost again and again
            machine.end()
            del self.machines[machine.name]
            self.start()
        self.made.until_idle()
        assert "Traceback" not in self.made.head.said


@pytest.fixture(scope="module")
def sea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sea]:
    with cluster(tmp_path_factory.mktemp("sea")) as made:
        built = Sea.__new__(Sea)
        try:
            built.__init__(made)
            made.until_ready()
            yield built
        finally:
            for machine in getattr(built, "machines", {}).values():
                machine.end()


@pytest.fixture(scope="module")
def undisturbed(sea: Sea) -> Said:
    """What is said when nothing happens, with all of the long prompts."""
    sea.until_serving()
    said = sea.ask([prompt for prompts in LONG for prompt in prompts])
    assert len({json.dumps(choice) for choices in said.drawn for choice in choices}) == 7  # two, one, three and one
    return said


def kill(sea: Sea, machine: Machine) -> None:
    assert machine.node is not None
    machine.node.signal(signal.SIGKILL)


def freeze(sea: Sea, machine: Machine) -> None:
    """Past the deadline; then it wakes, and is a ghost."""
    assert machine.node is not None
    machine.node.signal(signal.SIGSTOP)
    until(lambda: not sea.member(machine.name), sea.made.story, every=0.2)
    machine.node.signal(signal.SIGCONT)


def unplug(sea: Sea, machine: Machine) -> None:
    machine.unplug()
    until(lambda: not sea.member(machine.name), sea.made.story, every=0.2)
    machine.plug()


def cut(sea: Sea, machine: Machine) -> None:
    machine.cut_tensors()


def hang_up(sea: Sea, machine: Machine) -> None:
    machine.cut_control()


HAPPENINGS = {"killed": kill, "frozen": freeze, "unplugged": unplug, "cut off from the stage before": cut, "cut off from the head": hang_up}
STAGES = ["first", "middle", "last"]


@pytest.mark.parametrize("at", STAGES)
@pytest.mark.parametrize("what", HAPPENINGS)
def test_all_that_is_under_way_goes_on(sea: Sea, undisturbed: Said, what: str, at: str) -> None:
    """Streams, draws, penalties, log-probabilities, stop strings, choices and prompts half computed, to the last bit."""
    machine = sea.machines[sea.until_serving()[STAGES.index(at)]]
    which = (list(HAPPENINGS).index(what) * len(STAGES) + STAGES.index(at)) % len(LONG)
    said = sea.ask(LONG[which], lambda: HAPPENINGS[what](sea, machine))
    of_these = slice(which * len(LONG[0]), (which + 1) * len(LONG[0]))
    assert said == undisturbed._replace(long=undisturbed.long[of_these])
    sea.recovers(machine, what)
