"""Streams go on, token for token, whatever becomes of the nodes: real processes on machines of their own, trained weights.

Each machine is a network namespace with one cable, and proxies at its plug (tests/support/machines.py); so a node can be killed,
frozen, unplugged or have single links cut, by nothing that the product knows of. One cluster serves all cases: five nodes, so that
there are three stages or four and mostly a spare, whoever was lost a moment ago.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

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

STORIES = [f"Write a long story about a sailor and {i} whales, in many words." for i in range(10)]
NAMES = ["Ann Bob Cyd Dan", "Eve Flo Gus Hal", "Ida Jon Kim Leo", "Mia Ned Oda Pia"]
LONG = [[f"Sum up what {name} said. " + f"Then {name} spoke of ships and of the sea. " * 14 for name in names.split()] for names in NAMES]
"""Used in turn, so that none is found in the prefix cache: with the loss of a node all is forgotten that no stream holds."""
TOKENS, FEW = 32, 6
BEGUN = 40  # tokens that were said when something happens to a node that decodes


async def stream(client: httpx.AsyncClient, prompt: str, tokens: int, heard: list[str]) -> str:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, "stream": True}
    said: list[str] = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
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


class Sea:
    """The cluster and its machines."""

    def __init__(self, made: Cluster) -> None:
        self.made = made
        self.machines: dict[str, Machine] = {}
        self._names = itertools.count()
        made.serve(
            *("--host", "0.0.0.0", "--unprotected", "--min-nodes", "5", "--spread", "--spares", "1"),
            *("--heartbeat", "0.25", "--kv-tokens", "4096", "--context", "2048"),
        )  # fmt: skip
        for _ in range(5):
            self.start()

    def start(self) -> None:
        name = f"n{next(self._names)}"
        self.machines[name] = Machine(self.made, name)

    def nodes(self) -> dict[str, NodeDescription]:
        found = asyncio.run(describe(f"127.0.0.1:{self.made.control_port}"))
        self.state = found.state
        return {node.name: node for node in found.nodes}

    def member(self, name: str) -> bool:
        return name in self.nodes()

    def told(self) -> str:
        return "\n".join(asyncio.run(describe(f"127.0.0.1:{self.made.control_port}")).events)

    def until_serving(self) -> list[str]:
        """The names of the first stage, one in the middle, and the last one, when it serves."""

        def route() -> list[str]:
            stages = sorted((n for n in self.nodes().values() if n.end_layer), key=lambda n: n.first_layer)
            return [stages[i].name for i in (0, 1, -1)] if self.state.startswith("serving") and len(stages) >= 3 else []

        return until(route, lambda: f"{self.nodes()}\n{self.told()}\n{self.made.story()}")

    def ask(self, prompts: list[str], tokens: int, begun: Callable[[list[str]], bool], act: Callable[[], None]) -> list[str]:
        """All at once; `act` is called, in a thread of its own, once they have begun."""

        async def all_of_them() -> list[str]:
            heard: list[str] = []
            async with httpx.AsyncClient(base_url=self.made.url, timeout=BOUND, trust_env=False) as client, asyncio.timeout(2 * BOUND):
                asked = [asyncio.ensure_future(stream(client, prompt, tokens, heard)) for prompt in prompts]
                while not begun(heard):
                    assert not all(one.done() for one in asked), "all has been said before anything could happen"
                    await asyncio.sleep(0.005)
                acting = asyncio.get_running_loop().run_in_executor(None, act)
                answers = await asyncio.gather(*asked)
                await acting
                return answers

        try:
            return asyncio.run(all_of_them())
        except BaseException as error:
            error.add_note(self.made.story())
            raise

    def decoding(self, act: Callable[[], None] = lambda: None) -> list[str]:
        return self.ask(STORIES, TOKENS, lambda heard: len(heard) >= BEGUN, act)

    def prefilling(self, prompts: list[str], act: Callable[[], None] = lambda: None) -> list[str]:
        def begun(heard: list[str]) -> bool:
            assert not heard, "the prompts were computed before anything could happen"
            return self.made.metric("kv_blocks_used") > 0

        return self.ask(prompts, FEW, begun, act)

    def recovers(self, machine: Machine, what: str) -> None:
        """A node that lives comes back by itself, another one takes the place of one that does not; nothing is held any more."""
        until(lambda: what == "killed" or self.member(machine.name), self.made.story)
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
def undisturbed(sea: Sea) -> list[list[str]]:
    """What is said when nothing happens: the stories, then the answers to each set of long prompts."""
    sea.until_serving()
    return [sea.decoding(), *(sea.prefilling(prompts) for prompts in LONG)]


def kill(sea: Sea, machine: Machine) -> None:
    assert machine.node is not None
    machine.node.signal(signal.SIGKILL)


def freeze(sea: Sea, machine: Machine) -> None:
    """Past the deadline; then it wakes, and is a ghost."""
    assert machine.node is not None
    machine.node.signal(signal.SIGSTOP)
    until(lambda: not sea.member(machine.name))
    machine.node.signal(signal.SIGCONT)


def unplug(sea: Sea, machine: Machine) -> None:
    machine.unplug()
    until(lambda: not sea.member(machine.name))
    machine.plug()


def cut(sea: Sea, machine: Machine) -> None:
    machine.cut_tensors()


def hang_up(sea: Sea, machine: Machine) -> None:
    machine.cut_control()


HAPPENINGS = {"killed": kill, "frozen": freeze, "unplugged": unplug, "cut off from the stage before": cut, "cut off from the head": hang_up}
STAGES = ["first", "middle", "last"]


@pytest.mark.parametrize("at", STAGES)
@pytest.mark.parametrize("what", HAPPENINGS)
def test_streams_go_on(sea: Sea, undisturbed: list[list[str]], what: str, at: str) -> None:
    machine = sea.machines[sea.until_serving()[STAGES.index(at)]]
    assert sea.decoding(lambda: HAPPENINGS[what](sea, machine)) == undisturbed[0]
    sea.recovers(machine, what)


@pytest.mark.parametrize("at", STAGES)
@pytest.mark.parametrize("what", list(HAPPENINGS)[:4])
def test_prompts_go_on(sea: Sea, undisturbed: list[list[str]], what: str, at: str) -> None:
    machine = sea.machines[sea.until_serving()[STAGES.index(at)]]
    which = (list(HAPPENINGS).index(what) * len(STAGES) + STAGES.index(at)) % len(LONG)
    assert sea.prefilling(LONG[which], lambda: HAPPENINGS[what](sea, machine)) == undisturbed[1 + which]
    sea.recovers(machine, what)


SAMPLED = [
    {"temperature": 0.9, "seed": 7, "n": 2, "logprobs": True, "top_logprobs": 3, "frequency_penalty": 0.4},
    {"temperature": 1.2, "top_p": 0.9, "seed": 5, "presence_penalty": 0.5, "logit_bias": {"28": -5}},
    {"temperature": 0.7, "seed": 11, "stop": [" captain", "island"], "n": 3},
    {"temperature": 0, "logprobs": True, "top_logprobs": 1},
]


@pytest.mark.parametrize("at", STAGES)
def test_all_that_is_drawn_goes_on(sea: Sea, at: str) -> None:
    """Draws, penalties, log-probabilities, stop strings and choices are what they would have been, to the last bit."""

    async def answers(act: Callable[[], None] | None) -> list[list[dict[str, Any]]]:
        async with httpx.AsyncClient(base_url=sea.made.url, timeout=BOUND, trust_env=False) as client:
            bodies = [{"messages": [{"role": "user", "content": STORIES[i]}], "max_tokens": 48, **more} for i, more in enumerate(SAMPLED)]
            asked = [asyncio.ensure_future(client.post("/v1/chat/completions", json=body)) for body in bodies]
            if act is not None:
                began = sea.made.metric("generated_tokens_total")
                while sea.made.metric("generated_tokens_total") < began + 40:
                    assert not all(one.done() for one in asked), "all has been said before anything could happen"
                    await asyncio.sleep(0.01)
                act()
            return [(await one).json()["choices"] for one in asked]

    machine = sea.machines[sea.until_serving()[STAGES.index(at)]]
    undisturbed = asyncio.run(answers(None))
    assert len({json.dumps(choice) for choices in undisturbed for choice in choices}) == 7  # two, one, three and one
    assert asyncio.run(answers(lambda: kill(sea, machine))) == undisturbed
    sea.recovers(machine, "killed")
