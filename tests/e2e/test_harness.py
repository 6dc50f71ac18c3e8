"""lm-evaluation-harness, unchanged, on tasks of its own making: log-likelihoods and generation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import MODEL, served

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


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("harness"), 2) as cluster:
        yield f"{cluster.url}/v1/completions"


@pytest.mark.parametrize("tokenized", ["True", "False"])
def test_the_harness_runs(url: str, tokenized: str, tmp_path: Path) -> None:
    """Log-likelihoods always need the prompt's tokens, which the harness has the server make."""
    for name, rows in (("choice", CHOICES), ("generate", QUESTIONS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{name}.yaml").write_text(TASKS[name].replace("FOLDER", str(tmp_path)))
    tasks = ["local_generate"] if tokenized == "False" else ["local_choice", "local_generate"]
    backend = "None" if tokenized == "False" else "remote"
    model = f"model={MODEL},base_url={url},tokenizer_backend={backend},tokenized_requests={tokenized},num_concurrent=2,max_retries=1"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", model]
    command += ["--tasks", *tasks, "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "out").rglob("results_*.json")
    results: dict[str, Any] = json.loads(report.read_text())["results"]
    assert set(results) == set(tasks)
    assert results["local_generate"]["exact_match,stripped"] == 1
    if "local_choice" in tasks:
        assert results["local_choice"]["acc,none"] == 1
