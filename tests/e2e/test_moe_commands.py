"""`profile-moe` and `infer-moe` as commands, on a trained model of which a part is in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.models.sources import pull
from tests.support import upcycled

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPTS = ["Why is the sky blue?", "Name three rivers in Europe."]


@pytest.fixture(scope="module")
def model() -> Path:
    return upcycled.mixtral(pull("smollm2-135m"), "perturbed")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


def shoal(*arguments: str | Path, packed: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SHOAL_PACKED_CACHE": str(packed), "COLUMNS": "160", "SHOAL_STATE": "none"}
    command = [sys.executable, "-m", "shoal", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_profile(model: Path, cache: Path, tmp_path: Path) -> None:
    small = ("profile-moe", "--model", model, "--memory", "400MiB", "--batch-size", "4", "--steps", "4", "--threads", "1")
    values = json.loads(shoal(*small, "--json", packed=cache).stdout)
    assert values["batch"] == 4
    assert values["held_bytes"] < values["weight_bytes"]
    assert 0 < values["expert_hit_rate"] < 1
    assert 0 < values["disk_busy"] <= 1 and 0 < values["processor_busy"] <= 1
    assert values["decode_tokens_per_second"] > 0 and values["read_bytes_per_second"] > 0
    shown = shoal(*small, "--chart", tmp_path / "chart.svg", packed=cache).stdout
    assert "disk, experts" in shown and "processor, attention" in shown
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")
    held = json.loads(shoal("profile-moe", "--model", model, "--memory", "3GiB", "--steps", "2", "--json", packed=cache).stdout)
    assert held["held_bytes"] == held["weight_bytes"] and held["read_bytes_per_second"] == 0


def test_profile_refuses(model: Path, cache: Path) -> None:
    assert "not enough memory" in shoal("profile-moe", "--model", model, "--memory", "100MiB", packed=cache, code=1).stderr


def test_batch_runs_as_many_at_once_as_are_fastest(model: Path, cache: Path, tmp_path: Path) -> None:
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies = [{"messages": [{"role": "user", "content": prompt}], "max_tokens": 12} for prompt in [*PROMPTS, "Hello!"]]
    lines = [{"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body} for i, body in enumerate(bodies)]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ("--model", model, "--memory", "520MiB", "--nodes", "1", "--context", "512", "--threads", "1")
    told = shoal("batch", requests, "-o", answers, *given, packed=cache).stderr
    assert "3 requests, 3 at once" in told
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert sorted(answer["custom_id"] for answer in found) == ["0", "1", "2"]
    assert all(answer["response"]["status_code"] == 200 for answer in found)


def test_infer(model: Path, cache: Path, tmp_path: Path) -> None:
    prompts, answers, objects = tmp_path / "prompts.txt", tmp_path / "answers.jsonl", tmp_path / "prompts.jsonl"
    prompts.write_text("\n\n".join(PROMPTS) + "\n")
    objects.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    given = ("--model", model, "--memory", "520MiB", "--max-tokens", "12", "--context", "512", "--threads", "1")
    told = json.loads(shoal("infer-moe", prompts, "-o", answers, *given, "--json", packed=cache).stdout)
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [answer["prompt"] for answer in found] == PROMPTS
    assert all(answer["text"].strip() for answer in found)
    assert told["completion_tokens"] == sum(answer["usage"]["completion_tokens"] for answer in found) > 0
    assert told["prompts"] == told["batch"] == 2
    again = tmp_path / "again.jsonl"
    shoal("infer-moe", objects, "-o", again, *given, "--hardware-config", "zen4-2c", packed=cache)
    assert [json.loads(line)["prompt"] for line in again.read_text().splitlines()] == PROMPTS


def test_infer_keeps_what_was_answered_beside_what_cannot_be(model: Path, cache: Path, tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("\n".join([PROMPTS[0], "word " * 3000, PROMPTS[1]]))
    given = ("--model", model, "--memory", "520MiB", "--max-tokens", "8", "--context", "512", "--threads", "1")
    told = " ".join(shoal("infer-moe", prompts, "-o", answers, *given, packed=cache, code=1).stderr.split())
    assert f"1 of 3 prompts were not answered; {answers} says why" in told
    first, wrong, last = [json.loads(line) for line in answers.read_text().splitlines()]
    assert first["text"] and last["text"] and "tokens" in wrong["error"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.jsonl", "prompts.txt"]


def test_infer_goes_on_after_an_interruption(model: Path, cache: Path, tmp_path: Path) -> None:
    prompts, answers, kept = tmp_path / "prompts.txt", tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.answered.jsonl"
    prompts.write_text("\n".join(PROMPTS * 3))
    given = ["infer-moe", prompts, "-o", answers, "--model", model, "--memory", "3GiB", "--max-tokens", "120", "--context", "512"]
    command = [sys.executable, "-m", "shoal", *map(str, given), "--batch-size", "1", "--threads", "1"]
    environment = {**os.environ, "SHOAL_PACKED_CACHE": str(cache), "SHOAL_STATE": "none"}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        while running.poll() is None and not (kept.exists() and kept.read_bytes().count(b"\n")):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate()
    finally:
        running.kill()
    assert running.returncode == 130, said
    assert str(kept) in said.replace("\n", "") and not answers.exists()
    before = [json.loads(line) for line in kept.read_text().splitlines()]
    shoal(*given, "--threads", "1", packed=cache)
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [answer["prompt"] for answer in found] == PROMPTS * 3
    assert before[0]["response"]["body"]["choices"][0]["message"]["content"] in [answer["text"] for answer in found]
    assert not kept.exists()


def test_infer_refuses(model: Path, cache: Path, tmp_path: Path) -> None:
    prompts, there = tmp_path / "prompts.txt", tmp_path / "there.jsonl"
    prompts.write_text("Hello\n")
    there.write_text("kept")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "odd.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    new = tmp_path / "new.jsonl"
    for source, target, more, why in (
        (prompts, there, (), "there.jsonl exists"),
        (tmp_path / "none.txt", new, (), "cannot read"),
        (tmp_path / "empty.txt", new, (), "no prompts"),
        (tmp_path / "odd.jsonl", new, (), "line 2"),
        (prompts, new, ("--batch-size", "many"), "not 'many'"),
        (prompts, new, ("--strategy", "quick"), "quick"),
        (prompts, new, ("--hardware-config", "zen5"), "unknown hardware 'zen5'"),
    ):
        refused = shoal("infer-moe", source, "-o", target, "--model", model, *more, packed=cache, code=2)
        assert why in " ".join(refused.stderr.split())
    assert there.read_text() == "kept" and not new.exists()
