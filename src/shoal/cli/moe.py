"""`profile-moe` and `infer-moe`: a model, larger than memory or not, with many requests at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.markup import escape

from shoal.cli import batch as batches
from shoal.cli.batch_size import Work, chosen, fitted
from shoal.cli.show import described, emit, line, out
from shoal.config import EngineSettings, NodeSettings
from shoal.errors import ClusterError, ConfigError, NotEnoughMemory
from shoal.executor.cost import model_cost
from shoal.executor.expert_slots import AHEAD
from shoal.executor.measure import usable_memory
from shoal.executor.packed_layers import PackedLayers
from shoal.executor.rehearsal import Rehearsal, rehearse
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.models.description import Description
from shoal.models.weights import StoredWeights, Weights
from shoal.placement import chart
from shoal.placement.best_order import best_order
from shoal.placement.cost import ModelCost
from shoal.placement.division import StageSizes, least_expected
from shoal.placement.operations import makespan
from shoal.placement.timeline import Span
from shoal.sizes import human_bytes


def profile(engine: EngineSettings, node: NodeSettings, batch: int, prompt: int, steps: int, image: Path | None, as_json: bool) -> None:
    """Raises ShoalError, OSError."""
    model = described(engine.model)
    weights = model.weights
    if not isinstance(weights, StoredWeights):
        raise ConfigError(f"{model.name}: all of the model must be on this machine to profile it; shoal models pull it first")
    cost = model_cost(model.spec, weights, engine.precision, engine.kv_type, engine.step_tokens)
    kv = sum(layer.kv_bytes for layer in cost.layers) * batch * (prompt + 2 * steps)
    room = usable_memory(node) - kv - cost.workspace
    streamed = room < cost.held_bytes
    if streamed and room < (least := least_expected(StageSizes.of(cost, 0, len(cost.layers)))):
        raise NotEnoughMemory(
            least + kv + cost.workspace, usable_memory(node), "one stage of the model, with the keys and values of the batch"
        )

    def packed(of: Weights) -> PackedLayers:
        if (home := node.packed_folder) is None:
            raise ConfigError("the model is larger than memory, and --packed-cache none forbids reading it from disk")
        return PackedLayers.of(weights, home, engine.precision, node.compute_threads, line)

    make = factory(node.runtime, engine.precision, engine.kv_type, node.compute_threads, node.isa)
    shard = Shard(make, packed=packed, context=min(engine.context, model.spec.context))
    try:
        found = rehearse(shard, weights, room if streamed else 0, batch, prompt, steps)
    finally:
        shard.close()
    if image is not None:
        image.write_text(chart.svg(found.spans))
    _show(model, cost, found, prompt, image, as_json)


def _show(model: Description, cost: ModelCost, found: Rehearsal, prompt: int, image: Path | None, as_json: bool) -> None:
    sums, seconds = found.sums, found.seconds
    ordered = best_order(found.spans, AHEAD)
    best = makespan(ordered) / _length(found.spans) if ordered else 1.0
    values: dict[str, Any] = {
        "model": model.name,
        "batch": found.batch,
        "weight_bytes": cost.held_bytes,
        "held_bytes": min(found.held_bytes, cost.held_bytes),
        "decode_tokens_per_second": round(found.batch / found.step_seconds, 2),
        "step_ms": round(found.step_seconds * 1e3, 2),
        "prefill_tokens_per_second": round(found.batch * prompt / found.prompt_seconds, 1),
        "expert_hit_rate": round(found.tally.hit_rate, 4),
        "read_bytes_per_second": round(sums.nbytes / seconds),
        "disk_busy": round(sums.reading / seconds, 4),
        "processor_busy": round(sums.computing / seconds, 4),
        "best_order": round(best, 4),
    }
    if as_json:
        emit(values)
        return
    out.print(escape(model.name), style="bold", highlight=False)
    rows = {
        "batch": f"{found.batch} sequences, prompts of {prompt} tokens",
        "weights": f"{human_bytes(cost.held_bytes)}, {human_bytes(values['held_bytes'])} of them in memory",
        "speed": f"{values['decode_tokens_per_second']:.1f} tokens/s, {values['step_ms']:.1f} ms a step; prompts {values['prefill_tokens_per_second']:.0f} tokens/s",
    }
    if sums.reads:
        rows["experts"] = f"{found.tally.hit_rate:.0%} of those needed were in memory"
        rows["disk"] = f"busy {sums.reading / seconds:.0%} of the time, {human_bytes(values['read_bytes_per_second'])}/s"
        rows["processor"] = f"busy {sums.computing / seconds:.0%} of the time; the rest it waits for weights"
        rows["order"] = f"the best order of the same reads and computations would take {best:.0%} of the time"
    for what, text in rows.items():
        out.print(f"{what:10} {text}", highlight=False, soft_wrap=True)
    if found.spans:
        out.print(f"\nThe last step:\n{escape(chart.text(found.spans, min(out.width - 12, 100)))}", highlight=False, soft_wrap=True)
    if image is not None:
        line(f"written to {image}")


def _length(spans: Sequence[Span]) -> float:
    return max(span.ended for span in spans) - min(span.began for span in spans)


def infer(
    engine: EngineSettings,
    node: NodeSettings,
    prompts: Path,
    target: Path,
    tokens: int,
    batch: int,
    strategy: str,
    hardware: str,
    as_json: bool,
) -> None:
    """batch: requests at once; 0: as many as are fastest. hardware: a profile to choose that by; '': this machine's. Answers are kept beside the target until all prompts have one or an error, so
    that the same command goes on after an interruption. Raises ShoalError, OSError."""
    asked = list(_prompts(prompts))
    if target.exists():
        raise ConfigError(f"{target} exists; name another file for the results")
    work = Work()
    for text in asked:
        work.add(len(text), tokens)
    size = batch or chosen(described(engine.model), engine, node, 1, work, strategy, hardware)
    engine = fitted(engine, work, size)
    line(f"{len(asked)} prompts, {size} at once")
    began, names = perf_counter(), [_named(i, text, tokens) for i, text in enumerate(asked)]
    source, results = (target.with_name(f"{target.name}.{part}.jsonl") for part in ("asked", "answered"))
    try:
        source.write_text("".join(_request(name, text, tokens) for name, text in zip(names, asked, strict=True)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {source}: {error.strerror or error}") from error
    with suppress(batches.SomeUnanswered):  # what could not be answered is told below, with the rest
        batches.run(engine, node, 1, "", "", 600.0, source, results, size)
    seconds = perf_counter() - began
    answers = {answer["custom_id"]: answer["response"] for answer in map(json.loads, results.read_text(encoding="utf-8").splitlines())}
    found = [_answer(text, answers[name]) for name, text in zip(names, asked, strict=True)]
    with target.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in found)
    source.unlink()
    results.unlink()
    failed = sum("error" in answer for answer in found)
    made = sum(answer["usage"]["completion_tokens"] for answer in found if "usage" in answer)
    values = {"prompts": len(asked), "batch": size, "completion_tokens": made, "seconds": round(seconds, 2), "results": str(target)}
    if as_json:
        emit({**values, "failed": failed, "tokens_per_second": round(made / seconds, 2)})
    else:
        out.print(
            f"{made} tokens in {seconds:.1f} s with the start, {made / seconds:.1f} tokens/s; written to {escape(str(target))}",
            highlight=False,
        )
    if failed:
        raise ClusterError(f"{failed} of {len(asked)} prompts were not answered; {target} says why")


def _named(number: int, prompt: str, tokens: int) -> str:
    """A request's name, by which its answer of an earlier run is known."""
    return f"{number}-{sha256(f'{tokens} {prompt}'.encode()).hexdigest()[:16]}"


def _answer(prompt: str, response: dict[str, Any]) -> dict[str, Any]:
    """A line of the results."""
    body = response["body"]
    if response["status_code"] != 200:
        return {"prompt": prompt, "error": body["error"]["message"]}
    return {"prompt": prompt, "text": body["choices"][0]["message"]["content"], "usage": body["usage"]}


def _prompts(path: Path) -> Iterator[str]:
    """One a line, as text or as JSON with a "prompt". Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    found = 0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        found += 1
        if path.suffix != ".jsonl":
            yield text
            continue
        try:
            prompt = json.loads(text)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str) or not prompt:
            raise ConfigError(f'{path}, line {number}: not an object with a "prompt" that is text')
        yield prompt
    if not found:
        raise ConfigError(f"{path} has no prompts; write one on each line")


def _request(name: str, prompt: str, tokens: int) -> str:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"
