"""The load generator of the benchmarks: what it sends is as real traffic is, and it miscounts nothing however bytes arrive."""

from __future__ import annotations

import asyncio
from statistics import mean

import pytest

from benchmarks import load
from benchmarks.serve import percentiles
from benchmarks.traffic import Arrival, requests

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'1f\r\ndata: {"choices": [{"text": "data"}]}\n\n\r\n'
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def read(answer: bytes, cut: int) -> load._Reader:
    async def feed() -> load._Reader:
        reader = load._Reader(0.0)
        for at in range(0, len(answer), cut):
            reader.data_received(answer[at : at + cut])
        reader.connection_lost(None)
        return reader

    return asyncio.run(feed())


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 40, 1000])
def test_events_are_counted_however_the_bytes_are_cut(cut: int):
    reader = read(HEAD + 3 * EVENT + END, cut)
    assert (len(reader.events), reader.error) == (3, "")


@pytest.mark.parametrize("cut", [1, 9, 1000])
def test_a_refusal_and_a_cut_answer_are_errors(cut: int):
    assert "429" in read(b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}", cut).error
    assert "ended" in read(HEAD + EVENT, cut).error


def test_an_error_in_the_stream_is_an_error():
    assert "gone" in read(HEAD + EVENT + b'1f\r\ndata: {"error": {"message": "gone"}}\n\n\r\n', 1000).error


def test_lengths_have_the_means_of_real_traffic_and_fit():
    drawn = requests("1", 3000, 8, 4096, 40000)
    assert mean(len(a.prompt) for a in drawn) == pytest.approx(1150 / 8, rel=0.1)
    assert mean(a.tokens for a in drawn) == pytest.approx(210 / 8, rel=0.1)
    assert all(len(a.prompt) + a.tokens <= 64 for a in requests("1", 200, 1, 64, 40000))


def test_requests_arrive_at_their_rate_and_are_the_same_for_the_same_seed():
    drawn = requests("3", 1000, 64, 512, 40000, rate=4.0)
    assert drawn[-1].at == pytest.approx(250, rel=0.15)
    assert drawn == requests("3", 1000, 64, 512, 40000, rate=4.0)
    assert len({tuple(a.prompt[:4]) for a in drawn if len(a.prompt) >= 4}) == sum(len(a.prompt) >= 4 for a in drawn)


def test_percentiles_are_in_milliseconds():
    assert percentiles([i / 1000 for i in range(101)]) == pytest.approx((50, 90, 99))
    assert percentiles([0.002]) == (2, 2, 2)


@pytest.mark.parametrize("streams", [0, 2])
def test_a_closed_loop_keeps_its_number_of_streams_and_an_open_one_waits_for_nobody(streams: int):
    most = 0

    async def drive() -> load.Report:
        nonlocal most
        now = 0
        free = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal most, now
            await reader.readuntil(b"\r\n\r\n")
            now += 1
            most = max(most, now)
            if now == (streams or 6):
                free.set()
            await free.wait()
            now -= 1
            writer.write(HEAD + 2 * EVENT + END)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            plan = load.Plan("127.0.0.1", server.sockets[0].getsockname()[1], [Arrival(0, [1], 2)] * 6, streams)
            return await load._run(plan)

    report = asyncio.run(drive())
    assert [(len(o.events), o.error) for o in report.outcomes] == [(2, "")] * 6
    assert most == (streams or 6)


def test_all_are_cut_off_when_the_last_one_has_ended():
    async def drive() -> load.Report:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            body = await reader.readuntil(b"}")
            writer.write(HEAD + EVENT + (END if b"[7]" in body else b""))
            await reader.read()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await load._run(load.Plan("127.0.0.1", port, [Arrival(0, [1], 9), Arrival(0.05, [7], 1)], cut=True))

    assert [len(o.events) for o in asyncio.run(drive()).outcomes] == [1, 1]
