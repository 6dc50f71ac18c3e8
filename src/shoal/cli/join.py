"""`join`: gives this machine's memory and cores to a cluster. It imports nothing of the head and its API, so that a node starts
quickly."""

from __future__ import annotations

import asyncio
from time import monotonic

from shoal.address import parse_address
from shoal.cli.credentials import asked_for_code, check_keys
from shoal.cli.discover import find_head
from shoal.cli.loop import run
from shoal.cli.relocation import move_in
from shoal.cli.runtime import check
from shoal.cli.show import line
from shoal.cli.waiting import stop_signal, until
from shoal.config import NodeSettings
from shoal.control.client import refused
from shoal.errors import ClusterError, ConfigError
from shoal.executor.measure import measure, usable_memory
from shoal.node.agent import Agent
from shoal.node.holding import PulledModel
from shoal.node.host_environment import HostEnvironment

_STARTING = 20.0  # seconds within which a head that is started together with its nodes begins to listen


async def made_agent(settings: NodeSettings, head: str, machine: HostEnvironment) -> Agent:
    """A node on this machine, which is measured first."""
    speed = await machine.compute(lambda: measure(settings.compute_threads, settings.isa, settings.packed_folder))
    memory = max(usable_memory(settings) - settings.journal_memory, 0)
    return Agent(settings, head, machine, lambda order: PulledModel(settings, order, line), speed, memory, line)


async def listened(address: str) -> None:
    """Waits until something listens there: a head that is starting needs time; any other failure is reported at once.

    Raises ClusterError, ConfigError.
    """
    end, said = monotonic() + _STARTING, False
    while (why := await refused(address)) is not None:
        words = f"no head at {address}: {why.why}; is `shoal serve` running there, and is this its address?"
        if not why.passing:  # an invalid name, or an unreachable network
            raise ConfigError(words)
        if monotonic() >= end:
            raise ClusterError(words)
        if not said:
            said = True
            line(f"{address}: {why.why}; trying for {_STARTING:g} s more, in case the head is being started")
        await asyncio.sleep(0.25)


async def _join(address: str, settings: NodeSettings) -> None:
    check(settings)
    address = str(parse_address(address)) if address else ""
    check_keys(settings)
    stop = stop_signal()
    found = None if address else await find_head(settings)
    address = found.address if found is not None else address
    if not await until(stop, listened(address)):
        raise KeyboardInterrupt
    agent = await made_agent(settings, address, machine := HostEnvironment(await asked_for_code(settings, address, found, stop)))
    running = asyncio.ensure_future(agent.run())
    while not running.done():
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.is_set():
            stop.clear()
            line("leaving when the layers here have been moved; Ctrl-C again leaves at once")
            agent.leave()
    try:
        line(f"left: {await running}")
    finally:
        machine.close()


def join(settings: NodeSettings, address: str) -> None:
    move_in()
    run(_join(address, settings))
