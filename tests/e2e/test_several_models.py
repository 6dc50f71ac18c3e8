"""Two models with vocabularies of their own behind one endpoint, served by several real processes around engines that are scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from gguf import GGUFWriter

from shoal.config import ApiSettings
from shoal.gateway.engines import ServedEngines
from shoal.gateway.server import listening
from shoal.launch.api_workers import ApiWorkers
from shoal.launch.tokenizers import opened
from shoal.request import FinishReason, Request, TokenChunk
from shoal.text.tokenizer_parts import TokenizerFiles
from tests.support.engine import Item
from tests.support.http import CHAT, HI
from tests.support.several import Called
from tests.support.vocabularies import byte_level, sentencepiece

pytestmark = [pytest.mark.real, pytest.mark.slow]

SAID = "hello world"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def written(path: Path, meta: dict[str, Any]) -> Path:
    """A model's file of which there is only the vocabulary."""
    writer = GGUFWriter(path, "llama")
    for key, value in {**meta, "tokenizer.chat_template": TEMPLATE}.items():
        match value:
            case list():
                writer.add_array(key, value)
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case _:
                writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


class Speaking(Called):
    """Says SAID in the tokens of its file."""

    def __init__(self, name: str, path: Path, hang: bool = False) -> None:
        super().__init__(name, self._script, hang=hang)
        self.path = path
        self.tokenizer: Any = opened(TokenizerFiles(path), False)
        self.vocabulary = 300

    def _script(self, request: Request) -> list[Item]:
        tokens = self.tokenizer.encode(SAID, bos=False)
        chunks: list[Item] = [TokenChunk(request.id, 0, token, -0.5) for token in tokens]
        return chunks if self._hang else [*chunks, TokenChunk(request.id, 0, None, finish=FinishReason.STOP)]


@asynccontextmanager
async def serving(engines: ServedEngines, files: dict[str, Path], folder: Path) -> AsyncGenerator[httpx.AsyncClient]:
    settings = ApiSettings(data=str(folder), api_workers=2)
    with listening("127.0.0.1", 0) as address:
        api = ApiWorkers(engines, lambda name: TokenizerFiles(files[name]), settings, address, "text", False)
        serves = asyncio.ensure_future(api.serve())
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}", timeout=120, trust_env=False) as http:
                while (await http.get("/health/ready")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                yield http
        finally:
            api.stop()
            await serves


def processes() -> list[psutil.Process]:
    """The workers of this process."""
    return [child for child in psutil.Process().children() if "shoal.cli.api_worker" in child.cmdline()]


def test_each_process_serves_every_model_in_its_own_tokens(tmp_path: Path) -> None:
    async def go() -> None:
        files = {"bytes": written(tmp_path / "bytes.gguf", byte_level()), "pieces": written(tmp_path / "pieces.gguf", sentencepiece())}
        engines = ServedEngines([one := Speaking("bytes", files["bytes"])], one, {"best": "bytes"})
        async with asyncio.timeout(300), serving(engines, files, tmp_path) as http:
            other = Speaking("pieces", files["pieces"])
            engines.add(other)
            engines.rename({"best": "pieces"})
            while set((await http.get("/health")).json()["models"][-1].values()) != {"pieces", True, ""}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            answered: dict[str | None, str] = {}
            for name in ("bytes", "pieces", "best", None) * 4:
                async with httpx.AsyncClient(base_url=http.base_url, timeout=120, trust_env=False) as fresh:  # of any process
                    body = {"messages": HI, **({} if name is None else {"model": name})}
                    answer = (await fresh.post(CHAT, json=body)).json()
                assert answer["choices"][0]["message"]["content"].strip() == SAID
                answered[name] = answer["model"]
            assert answered == {"bytes": "bytes", "pieces": "pieces", "best": "pieces", None: "bytes"}
            assert (len(one.streams), len(other.streams)) == (8, 8)
            for engine in (one, other):
                assert all(stream.request.prompt == engine.tokenizer.encode_marked("Hi") for stream in engine.streams)
            assert one.streams[0].request.prompt != other.streams[0].request.prompt

    asyncio.run(go())


def test_a_model_that_goes_ends_its_streams_and_a_process_that_is_killed_its_own(tmp_path: Path) -> None:
    async def go() -> None:
        files = {"bytes": written(tmp_path / "bytes.gguf", byte_level()), "pieces": written(tmp_path / "pieces.gguf", sentencepiece())}
        stays, goes = Speaking("bytes", files["bytes"], hang=True), Speaking("pieces", files["pieces"], hang=True)
        engines = ServedEngines([stays, goes], stays)
        async with asyncio.timeout(300), serving(engines, files, tmp_path) as http:
            body = {"messages": HI, "stream": True}
            named = {"X-Request-Id": "mine"}
            async with (
                http.stream("POST", CHAT, json={**body, "model": "pieces"}) as ends,
                http.stream("POST", CHAT, json=body, headers=named) as lasts,
            ):
                heard = [ends.aiter_lines(), lasts.aiter_lines()]
                for lines in heard:
                    while "hello" not in await anext(lines):
                        pass
                engines.remove("pieces")
                assert any("the model 'pieces' was unloaded" in line for line in [line async for line in heard[0]])
                assert goes.streams[0].closed and not stays.streams[0].closed
                for process in processes():
                    process.kill()
                with pytest.raises(httpx.HTTPError):
                    async for _ in heard[1]:
                        pass
            async with asyncio.timeout(120):
                while True:
                    try:
                        async with http.stream("GET", "/v1/streams/mine") as again:
                            said = ""
                            async for line in again.aiter_lines():
                                if line.startswith("data: "):
                                    said += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
                                if said == SAID:
                                    return
                    except httpx.HTTPError:
                        await asyncio.sleep(0.1)

    asyncio.run(go())
