"""Every figure that a page of the console shows, and what it has to show by the API's answers.

An entry is 'place: text', in the order of the page. The place of a table's cell is its row and column; of anything else what the page marks it
as (data-figure). Titles and labels for screen readers are entries, too. Only texts with a digit are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from playwright.sync_api import Page

from tests.support.console_format import (
    clock,
    count,
    countdown,
    duration,
    figure,
    fixed,
    layers,
    moment,
    percent,
    plural,
    short,
    size,
    span,
)

Json = Mapping[str, Any]

EXCEPT = {
    "option": "names to choose from, which the page shows elsewhere",
    "#day": "the heading of the last 24 hours",
    ".answer .markdown, .question .plain, .tokens": "what was asked and answered",
    "pre[aria-label^='the lines for']": "lines for clients, which test_clients.py runs",
    "[aria-labelledby='try'] p": "says how long the answer may be",
    ".said": "what was just done, which goes by itself",
}
"""Texts that no figure of the API is in, and why."""

_READ = """except => {
    const found = [], marked = "pre, [data-figure]";
    const plain = text => text.replace(/\\s+/g, " ").replace(/ ([,.;])/g, "$1").trim();
    const add = (place, text) => /\\d/.test(text) && found.push(`${place}: ${plain(text)}`);
    const cell = node => { const near = node.closest("td, th, dialog"); return near?.matches("td, th") ? near : null; }
    const owner = node => cell(node) ?? node.closest(marked);
    const whole = element => {
        const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
        let text = "", before = null;
        while (walker.nextNode()) {
            const { data, parentElement } = walker.currentNode;
            if (parentElement.closest("dialog") !== element.closest("dialog") || parentElement.closest(except)) continue;
            text += (before === null || before === parentElement ? "" : " ") + data;
            before = parentElement;
        }
        return text;
    };
    const place = element => {
        if (!element.matches("td, th")) return element.dataset.figure ?? element.getAttribute("aria-label");
        const row = element.closest("tr"), head = row.querySelector("th[scope=row]");
        const name = head ? plain((head.querySelector(".name") ?? head).textContent) : row.dataset.request;
        const column = element.closest("table").tHead?.rows[0].cells[element.cellIndex];
        return [name, column && plain(column.textContent)].filter(Boolean).join(", ");
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode;
        if (node instanceof Text) {
            if (!owner(node.parentElement) && !node.parentElement.closest(except)) add("nowhere", node.data);
            continue;
        }
        add("title", node.title ?? "");
        if (!node.matches("button, select, input, textarea, a")) add("label", node.getAttribute("aria-label") ?? "");
        if (owner(node) === node && !node.closest(except)) add(place(node), whole(node));
    }
    return found;
}"""


def figures(page: Page) -> list[str]:
    """All entries of a page. 'nowhere' is the place of those that are not marked."""
    return page.evaluate(_READ, ", ".join(EXCEPT))


def _said(*entries: tuple[str, str]) -> Iterator[str]:
    for place, text in entries:
        if any(map(str.isdigit, text)):
            yield f"{place}: {text}"


def _row(name: str, cells: Mapping[str, str]) -> Iterator[str]:
    yield from _said(*((f"{name}, {column}" if column else name, text) for column, text in cells.items()))


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))


def shell(view: Json) -> Iterator[str]:
    """What is beside every page."""
    wanted = len(view["attention"])
    yield from _said(
        ("attention", f"{wanted} to look at" if wanted else ""),
        ("name", view["pipeline"] if len(view["pipelines"]) > 1 else view["model"]["name"]),
    )


def advices(listed: Sequence[Json], gains: bool = True) -> Iterator[str]:
    for advice in listed:
        gain = f"+{percent(advice['gain'])}" if gains and advice["gain"] > 0 else ""
        yield from _said((advice["kind"], _joined(advice["message"], gain)))


def bar(label: str, parts: Sequence[tuple[str, int, int, float]], total: int, time: bool) -> Iterator[str]:
    """A bar of layers. parts: node, first and end layer, share of a step; nobody's layers have node ''."""
    told = [f"{node or 'nobody'}: {'layer' if end - first == 1 else 'layers'} {layers(first, end)}" for node, first, end, _ in parts]
    yield from _said(("label", f"{label}. {'; '.join(told)}"))
    wide = [(node or "nobody", layers(first, end)) for node, first, end, _ in parts if (end - first) / total > 0.09]
    yield from _said(("layers", " ".join(f"{node} {held}" for node, held in wide)))
    yield from _said(*(("title", f"{node or 'nobody'}: layers {layers(first, end)} of {total}") for node, first, end, _ in parts))
    if not time or not any(share for *_, share in parts):
        return
    rest = 1 - sum(share for *_, share in parts)
    yield from _said(("shares", _joined(*(percent(s) for *_, s in parts if s > 0.07), "wire, head" if rest > 0.14 else "")))
    yield from _said(*(("title", f"{node}: {percent(share)} of a step") for node, _, _, share in parts))
    if rest > 0.005:
        yield from _said(("title", f"between the stages and in the head: {percent(rest)}"))


def with_gaps(held: Sequence[tuple[str, int, int, float]], total: int) -> list[tuple[str, int, int, float]]:
    parts: list[tuple[str, int, int, float]] = []
    for part in [*held, ("", total, total, 0.0)]:
        if part[1] > (reached := parts[-1][2] if parts else 0):
            parts.append(("", reached, part[1], 0.0))
        parts.append(part)
    return parts[:-1]


def gone(pipeline: str, shown: str) -> Iterator[str]:
    """Of a pipeline that was looked at."""
    yield from _said(("gone", f"{pipeline} is gone: its model was unloaded, or has fewer copies now. This is {shown}."))


def pipeline_row(pipeline: Json) -> Iterator[str]:
    nodes, requests = pipeline["nodes"], pipeline["requests"]
    yield from _row(
        pipeline["name"],
        {
            "pipeline": pipeline["name"],
            "state": _joined(pipeline["state"], pipeline["reason"]),
            "running": str(requests["running"]),
            "waiting": str(requests["waiting"]),
            "tokens/s": short(pipeline["measured"]),
            "machines": ", ".join(nodes) if len(nodes) < 6 else f"{', '.join(nodes[:4])} and {len(nodes) - 4} more",
        },
    )


def pipelines(view: Json) -> list[str]:
    """Nothing where there is one."""
    if len(listed := view["pipelines"]) < 2:
        return []
    return [*_said(("pipelines", str(len(listed)))), *(line for pipeline in listed for line in pipeline_row(pipeline))]


def cluster_page(view: Json, experts: Json, lost: str = "") -> list[str]:
    """experts: rows by layer; {}: none are shown. lost: a pipeline that was looked at and is gone."""
    model, requests, stages = view["model"], view["requests"], view["stages"]
    named = f"{view['cluster']}, " if view["cluster"] else ""
    held = [(s["node"], s["first_layer"], s["end_layer"], s["share"]) for s in stages] or sorted(
        ((m["name"], m["first_layer"], m["end_layer"], 0.0) for m in view["machines"] if m["end_layer"] > m["first_layer"]),
        key=lambda m: m[1],
    )
    blocks = requests["blocks_used"] / requests["blocks"] if requests["blocks"] else 0
    single = f"one stream {short(view['predicted_single'])}" if view["predicted_single"] else "full slots"
    reason = view["reason"] if view["state"] == "serving" else f"Not serving yet ({view['state']}): {view['reason']}"
    return [
        *shell(view),
        *_said(("started", f"{named}shoal {view['version']}, up for {span(view['at'] - view['started'])}")),
        *(gone(lost, view["pipeline"]) if lost else ()),
        *pipelines(view),
        *advices(view["attention"]),
        *_said(
            ("reason", reason),
            ("measured", f"tokens per second {short(view['measured'])} the last 10 s"),
            ("predicted", f"predicted {short(view['predicted']) if view['predicted'] else '–'} {single}"),
            ("running", f"running {requests['running']} of {requests['slots']} at once"),
            ("waiting", f"waiting {requests['waiting']}"),
            ("blocks", f"KV blocks {percent(blocks)} {requests['blocks_used']} of {requests['blocks']}"),
            ("context", f"context {model['context']} tokens"),
            ("model", f"{model['layers']} of {model['name']}, {size(model['weights'])}"),
        ),
        *bar("Where the layers are", with_gaps(held, model["layers"]), model["layers"], True),
        *(line for stage in stages for line in stage_row(stage)),
        *(_row("back to the head", {"way to it": duration(view["last_hop"])}) if stages else ()),
        *advices(view["advice"]),
        *_said(("machines", str(len(view["machines"])))),
        *(line for machine in view["machines"] for line in machine_row(machine)),
        *(_said(("experts", f"{model['experts']} in a layer")) if model["experts"] else ()),
        *(line for layer, rows in sorted(experts.items(), key=lambda each: int(each[0])) for line in experts_row(layer, rows)),
    ]


def stage_row(stage: Json) -> Iterator[str]:
    columns = {"way to it": "hop", "waits": "wait", "computes": "compute", "samples": "sample", "predicted": "predicted"}
    yield from _row(
        stage["node"],
        {
            "stage": stage["node"],
            "layers": layers(stage["first_layer"], stage["end_layer"]),
            **{column: duration(stage[name]) for column, name in columns.items()},
            "of a step": percent(stage["share"]),
        },
    )


def machine_row(machine: Json) -> Iterator[str]:
    state, progress = [machine["state"]], machine["progress"]
    if machine["slower"] > 1.05:
        state.append(f"{fixed(machine['slower'], 1)} × slower than it measured")
    if machine["silence"] > 2:
        state.append(f"silent for {span(machine['silence'])}")
    if progress:
        state.append(progress["words"])
        if progress["total"]:
            state.append(f"{percent(min(1, progress['done'] / progress['total']))} of {size(progress['total'])}")
    elif machine["state"] not in ("serving", "idle"):
        state.append(machine["words"])
    holds = layers(machine["first_layer"], machine["end_layer"]) if machine["end_layer"] > machine["first_layer"] else ""
    rate = machine["link_bytes_per_second"]
    yield from _row(
        machine["name"],
        {
            "machine": f"{machine['name']} {machine['machine'] or machine['address']}{', experts' * (machine['role'] == 'experts')}",
            "state": " ".join(state),
            "holds": _joined(holds, plural(machine["experts"], "expert") if machine["experts"] else ""),
            "memory": f"{size(machine['weights'])} of {size(machine['memory'])} process {size(machine['resident'])}",
            "threads": _joined(str(machine["threads"]), machine["runtime"]),
            "reads": _joined(
                f"{size(machine['bytes_per_second'])}/s" if machine["bytes_per_second"] else "–",
                f"disk {size(machine['disk'])}/s" if machine["disk"] else "",
            ),
            "link to the head": _joined(
                duration(machine["round_trip"]) if machine["round_trip"] else "–", f"{size(rate)}/s" if rate else ""
            ),
            "busy": _joined(percent(machine["busy"]), f"{plural(machine['queue'], 'frame')} waiting" if machine["queue"] else ""),
        },
    )


def experts_row(layer: str, rows: Sequence[int]) -> Iterator[str]:
    total = sum(rows)
    spread = -sum(n / total * math.log(n / total) for n in rows if n) / math.log(len(rows)) if total else 0
    yield from _row(
        layer,
        {
            "layer": layer,
            "rows": count(total),
            "busiest expert": str(rows.index(max(rows))) if total else "–",
            "× the mean": fixed(max(rows) * len(rows) / total if total else 0, 2),
            "evenness": percent(spread),
        },
    )


def preview(plan: Json, view: Json, lack: str) -> list[str]:
    """The dialog that says what would come of a change. lack: what is so where there is no plan."""
    if plan["why"]:
        return [*_said(("why", f"{lack}: {plan['why']}"))]
    total = view["model"]["layers"]
    now = [(s["node"], s["first_layer"], s["end_layer"], s["share"]) for s in view["stages"]]
    then = [(s["node"], s["first_layer"], s["end_layer"], 0.0) for s in plan["stages"]]
    change = plan["predicted"] / plan["predicted_now"] - 1
    return [
        *(_said(("pipeline", f"Of {view['pipeline']}:")) if len(view["pipelines"]) > 1 else ()),
        *bar("Layers now", with_gaps(now, total), total, False),
        *bar("Layers afterwards", with_gaps(then, total), total, False),
        *_said(
            ("predicted now", f"{short(plan['predicted_now'])} tokens/s"),
            ("predicted afterwards", f"{short(plan['predicted'])} tokens/s ({'+' if change > 0 else '−'}{percent(abs(change))})"),
            *((node, f"loads {plural(moved, 'layer')}") for node, moved in plan["moved"].items() if moved),
        ),
    ]


WRITTEN = {"tokens_per_second": short, "first": duration, "queue": short, "memory": size}
"""How each series of the last day is."""


def _lines(series: str, history: Json) -> Iterator[tuple[str, list[float | None]]]:
    yield from (("p50 ", history["first_p50"]), ("p99 ", history["first_p99"])) if series == "first" else (("", history[series]),)


def day(series: str, history: Json) -> str:
    """A series in words: what it is now, and at most."""
    names = {"tokens_per_second": "tokens per second", "first": "first token", "queue": "waiting", "memory": "memory of all nodes"}
    written, told = WRITTEN[series], list[str]()
    for label, values in _lines(series, history):
        known = [value for value in values if value is not None]
        told += [f"{label}{written(known[-1])}, at most {written(max(known))}"] if known else []
    return f"{names[series]} {'; '.join(told) or 'nothing yet'}"


def sample(series: str, history: Json, at: int) -> str:
    """One minute of a series, as it is shown under the pointer."""
    told = ((label, values[at]) for label, values in _lines(series, history))
    return ", ".join(f"{label}{WRITTEN[series](value)}" for label, value in told if value is not None)


def events_page(view: Json, history: Json, events: Sequence[Json]) -> list[str]:
    """events: all, oldest first, as many as fit on the screen."""
    return [
        *shell(view),
        *advices(view["attention"], gains=False),
        *_said(*((series, day(series, history)) for series in ("tokens_per_second", "first", "queue", "memory"))),
        *_said(("events", count(len(events)))),
        *(line for event in reversed(events) for line in event_row(event)),
    ]


def event_row(event: Json) -> Iterator[str]:
    told = ", ".join(f"{name.replace('_', ' ')} {figure(name, value)}" for name, value in event["figures"].items())
    yield from _said(("title", told), ("event", _joined(moment(event["at"]), event["kind"], event["message"], told)))


def timeline_page(view: Json, timeline: Json, requests: Sequence[Json], chosen: int = -1) -> list[str]:
    """chosen: a step; -1: the latest is shown."""
    request, recoveries, steps = timeline["request"], timeline["recoveries"], timeline["steps"]
    lost = f"{timeline['lost']} older ones are not kept" if timeline["lost"] else ""
    return [
        *shell(view),
        *_said(
            ("label", f"Timeline of {request['id']}"),
            ("state", _joined(f"began {moment(request['began'])} {request['state']}", request["reason"])),
            ("generated", f"tokens {request['generated']} prompt {request['prompt_tokens']}, {request['cached_tokens']} cached"),
            ("first", f"first token after {_first(request)}"),
            ("rate", f"tokens per second {_rate(request)}"),
            ("steps", _joined(f"steps {len(steps)}", lost)),
            ("interruptions", plural(len(recoveries), "interruption") if recoveries else ""),
            *(("recovery", recovery(each)) for each in recoveries),
        ),
        *(step_table(steps[chosen], timeline["epochs"], "(the latest) " if chosen < 0 else "") if steps else ()),
        *_said(("requests", f"the latest {len(requests)}")),
        *(line for each in requests for line in request_row(each)),
    ]


def step_table(step: Json, epochs: Json, which: str) -> Iterator[str]:
    took = sum(step[part] for part in ("schedule", "encode", "send", "back", "apply")) + sum(map(sum, step["stages"]))
    rows = f"{plural(step['rows'], 'row')}, {step['own']} of this request; {plural(step['tokens'], 'token')}"
    yield from _said(("step", f"Step {step['number']} {which}at {clock(step['at'])}, took {duration(took)}; {rows}"))
    encodes = f"{duration(step['encode'])}, sends {duration(step['send'])}"
    yield from _row("head", {"prepares": f"schedules {duration(step['schedule'])}", "encodes": encodes})
    columns = ("way to it", "waits", "prepares", "computes", "samples", "encodes")
    for node, stage in zip(epochs[str(step["epoch"])], step["stages"], strict=True):
        yield from _row(node, {"where": node, **dict(zip(columns, map(duration, stage), strict=True))})
    yield from _row("head", {"way to it": duration(step["back"]), "prepares": f"applies {duration(step['apply'])}"})


def _first(request: Json) -> str:
    return duration(request["first"] - request["began"]) if request["first"] else "–"


def _rate(request: Json) -> str:
    return short(request["tokens_per_second"]) if request["tokens_per_second"] else "–"


def recovery(told: Json) -> str:
    who = f"{told['node']}: " if told["node"] else ""
    noticed = f"noticed after {duration(told['silence'])} of silence; " if told["silence"] else ""
    paused = f"paused {duration(told['ended'] - told['at'])}" if told["ended"] else "not over yet"
    parts = ", ".join(f"{name} {duration(took)}" for name, took in told["parts"].items())
    end = f"{plural(told['refilled'], 'token')} refilled, {told['kept']} kept, none lost"
    return f"{who}{told['reason']}; {noticed}{paused}{f' ({parts})' if parts else ''}; {end}"


def request_row(request: Json) -> Iterator[str]:
    yield from _row(
        request["id"],
        {
            "began": clock(request["began"]),
            "request": request["id"],
            "key": request["key"] or "–",
            "state": request["state"],
            "prompt": str(request["prompt_tokens"]),
            "tokens": str(request["generated"]),
            "first token": _first(request),
            "tokens/s": _rate(request),
        },
    )


def keys_page(view: Json, keys: Sequence[Json]) -> list[str]:
    return [*shell(view), *_said(("keys", str(len(keys)))), *(line for key in keys for line in key_row(key))]


def key_row(key: Json) -> Iterator[str]:
    limits = [
        f"{count(key['rpm'])} requests/min" if key["rpm"] else "",
        f"{count(key['tokens_per_minute'])} tokens/min" if key["tokens_per_minute"] else "",
        f"{key['concurrency']} at once" if key["concurrency"] else "",
        key["priority"] if key["priority"] != "urgent" else "",
        f"until {moment(key['expires'])}" if key["expires"] else "",
    ]
    yield from _row(
        key["name"],
        {
            "key": f"{key['name']} {key['id']}",
            "requests": count(key["requests"]),
            "prompt tokens": count(key["prompt_tokens"]),
            "tokens": count(key["completion_tokens"]),
            "last used": moment(key["last_used"]) if key["last_used"] else "never",
            "limits": ", ".join(filter(None, limits)),
        },
    )


def models_page(view: Json, listed: Json) -> list[str]:
    return [
        *shell(view),
        *_said(("memory", f"{size(listed['memory'])} of memory on all machines together")),
        *_said(("loaded", str(len(listed["loaded"])))),
        *(line for model in listed["loaded"] for line in loaded_row(model, listed["aliases"])),
        *_said(*(("loading", f"{name} is being fetched and read") for name in listed["loading"])),
        *_said(*(("not loaded", f"{name} {why}") for name, why in listed["failed"].items())),
        *_said(("aliases", str(len(listed["aliases"])))),
        *_said(*(("alias", f"{alias} stands for {target}") for alias, target in listed["aliases"].items())),
        *_said(*(("pull", pull(each)) for each in listed["pulls"])),
        *_said(("models", str(len(listed["models"])))),
        *(line for model in listed["models"] for line in model_row(model, listed["loaded"])),
    ]


def loaded_row(model: Json, aliases: Mapping[str, str]) -> Iterator[str]:
    about = [model["reference"] if model["reference"] != model["name"] else "", model["family"], f"{short(model['parameters'])} parameters"]
    yield from _row(
        model["name"],
        {
            "model": _joined(model["name"], " · ".join(filter(None, about))),
            "state": model["state"] or "serving",
            "copies": f"{model['serving']} of {model['replicas']}",
            "context": count(model["context"]),
            "quantised": model["quantization"] or "–",
            "can": ", ".join(model["can"]) or "–",
            "aliases": ", ".join(leading(aliases, model["name"])) or "–",
        },
    )


def leading(aliases: Mapping[str, str], name: str) -> list[str]:
    """To a model, also by way of others."""
    return [each for alias, target in aliases.items() if target == name for each in (alias, *leading(aliases, alias))]


def unloading(model: str, view: Json) -> Iterator[str]:
    """The dialog that asks whether to."""
    requests = [pipeline["requests"] for pipeline in view["pipelines"] if pipeline["model"] == model]
    running, waiting = (sum(each[state] for each in requests) for state in ("running", "waiting"))
    waits = f" and {plural(waiting, 'waits', 'wait')}" if waiting else ""
    runs = f"{plural(running, 'request runs', 'requests run')}{waits}: they end with an error."
    yield from _said(("dialog", f"Unload {model}"), ("requests", runs if running + waiting else "No request runs."))


def pull(told: Json) -> str:
    if told["failed"]:
        progress = told["failed"]
    elif told["ended"]:
        progress = f"is here, after {span(told['ended'] - told['began'])}"
    elif told["total"]:
        progress = f"{percent(told['done'] / told['total'])} of {size(told['total'])}"
    else:
        progress = size(told["done"]) if told["done"] else "begins"
    return f"{told['name']} {progress}"


def model_row(model: Json, loaded: Sequence[Json]) -> Iterator[str]:
    served = model["served"] or any(
        one["name"] == model["name"] or one["reference"] in (model["name"], model["reference"]) for one in loaded
    )
    words = " · ".join(filter(None, [model["reference"] if model["reference"] != model["name"] else "", model["about"]]))
    yield from _row(
        model["name"],
        {
            "model": _joined(model["name"], "served" if served else "", words),
            "size": size(model["size"]) if model["size"] else "–",
        },
    )


def join_page(view: Json, events: Sequence[Json], invitation: Json | None, now: float) -> list[str]:
    made: list[str] = []
    if invitation:
        command = invitation["command"]
        until = f", good for {countdown(invitation['expires'] - now)}" if invitation["expires"] else ""
        made = [
            *_said(("the line for Linux", command)),
            *_said(("code", f"Code {invitation['code']}{until}, for one machine. Another") if invitation["code"] else ("", "")),
            *_said(("version", f"From a wheel of this version ({view['version']}).")),
            *_said(("label", f"QR code of the line {command}")),
        ]
    return [
        *shell(view),
        *made,
        *_said(("machines", str(len(view["machines"])))),
        *(
            line
            for m in view["machines"]
            for line in _row(m["name"], {"machine": m["name"], "address": m["address"], "state": m["state"], "memory": size(m["memory"])})
        ),
        *_said(*(("refused", f"{moment(event['at'])} {event['message']}") for event in reversed(events) if event["kind"] == "refused")),
    ]


def usage(told: Json, finish: str, rate: float, first: float) -> str:
    """Under an answer. told: its usage; rate, first: as the page has measured them."""
    cached = told["prompt_tokens_details"]["cached_tokens"]
    parts = [plural(told["completion_tokens"], "token")]
    parts += [f"{short(rate)} tokens/s"] if rate else []
    parts += [f"first after {duration(first)}", f"prompt {told['prompt_tokens']}{f', {cached} of it cached' if cached else ''}"]
    parts += ["cut at the limit"] if finish == "length" else []
    return f"usage: {' · '.join(parts)} · timeline"


def probabilities(scored: Sequence[Json], chosen: int) -> list[str]:
    """The map of an answer's tokens with one of them chosen."""
    token = scored[chosen]
    others = [top for top in token["top_logprobs"] if top["token"] != token["token"]]
    return [
        *_said(("label", f"{len(scored)} tokens; arrow keys choose one")),
        *(f"title: {percent(math.exp(each['logprob']))}" for each in scored),
        f"perplexity: Perplexity {fixed(math.exp(-sum(each['logprob'] for each in scored) / len(scored)), 2)}.",
        f"token: Token {chosen + 1}",
        *(
            f"{json.dumps(each['token'], ensure_ascii=False)}: {text}"
            for each in (token, *others)
            for text in (percent(math.exp(each["logprob"])), fixed(each["logprob"], 3))
        ),
    ]
