"""lm-evaluation-harness, unchanged, on tasks of its own making: log-likelihoods and generation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cluster import MODEL, Cluster, served

pytestmark = [pytest.mark.real, pytest.mark.slow]

CHOICES = [
    {"question": "The capital of France is", "choices": [" Paris", " banana"], "answer": 0},
    {"question": "One, two, three,", "choices": [" elephant", " four"], "answer": 1},
]
QUESTIONS = [{"question": "One, two, three, four, five,", "answer": "six, seven"}]
TASKS = {
    "choice": """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "generate": """
task: local_generate
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/generate.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", ", eight"], max_gen_toks: 12, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match}]
filter_list: [{name: stripped, filter: [{function: regex, regex_pattern: "(six, seven)"}, {function: take_first}]}]
""",
}


# As a library: as a command it reads all tasks that it comes with, which takes several times as long as these.
EVALUATE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder, runs = sys.argv[1], json.loads(sys.argv[2])
tasks = TaskManager(include_path=folder, include_defaults=False)
found = {
    name: simple_evaluate(model="local-completions", model_args=arguments, tasks=names, task_manager=tasks)["results"]
    for name, (arguments, names) in runs.items()
}
with open(folder + "/found.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with served(tmp_path_factory.mktemp("cluster"), 1) as made:
        yield made


@pytest.fixture(scope="module")
def results(made: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it found, by how prompts are sent: as tokens or as text. Log-likelihoods need the prompt's tokens, which the harness has the server make."""
    folder = tmp_path_factory.mktemp("harness")
    for name, rows in (("choice", CHOICES), ("generate", QUESTIONS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(TASKS[name].replace("FOLDER", str(folder)))

    def arguments(backend: str, tokenized: bool) -> str:
        url = f"{made.url}/v1/completions"
        return f"model={MODEL},base_url={url},tokenizer_backend={backend},tokenized_requests={tokenized},num_concurrent=2,max_retries=1"

    runs = {
        "tokens": (arguments("remote", True), ["local_choice", "local_generate"]),
        "text": (arguments("None", False), ["local_generate"]),
    }
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    command = [sys.executable, "-c", EVALUATE, str(folder), json.dumps(runs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def test_prompts_of_tokens(results: dict[str, Any]) -> None:
    assert set(results["tokens"]) == {"local_choice", "local_generate"}
    assert results["tokens"]["local_choice"]["acc,none"] == 1
    assert results["tokens"]["local_generate"]["exact_match,stripped"] == 1


def test_prompts_of_text(results: dict[str, Any]) -> None:
    assert set(results["text"]) == {"local_generate"}
    assert results["text"]["local_generate"]["exact_match,stripped"] == 1
