"""docs/families.md adds a family: this does what it says, with the code that is on the page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

from shoal.errors import UnsupportedModel
from shoal.models import families
from shoal.models.families import tensor_names
from shoal.models.families.config import ConfigJson
from shoal.models.families.read import spec_from_config
from shoal.models.weights import SafetensorsWeights
from tests.support import tiny, tiny_families
from tests.support.stages import Stages

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "families.md").read_text()
BLOCKS = re.findall(r'^```python title="(.*?)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
NEW = next(title for title, _ in BLOCKS if title.endswith(".py") and not (ROOT / title).exists())
NAME = Path(NEW).stem


def blocks(title: str) -> list[str]:
    return [code for found, code in BLOCKS if found == title]


def test_every_block_has_a_part_here() -> None:
    assert len(BLOCKS) == PAGE.count("```") / 2
    other = {title for title, _ in BLOCKS if not (ROOT / title).exists()}
    assert other == {NEW, "check", "tests/support/tiny_families.py: SIZES"}


@pytest.mark.parametrize(("title", "code"), [(title, code) for title, code in BLOCKS if (ROOT / title).exists()])
def test_quotations_are_from_the_source(title: str, code: str) -> None:
    assert code in (ROOT / title).read_text()


def test_files_that_the_page_names_exist() -> None:
    named = {name for name in re.findall(r"`([\w/]+\.(?:py|md))`", PAGE) if name != NEW}
    assert len(named) > 10
    roots = [ROOT, ROOT / "src" / "shoal", ROOT / "src" / "shoal" / "models"]
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


def test_pieces_of_the_table_can_be_made() -> None:
    written = re.findall(r"^\|[^|]+\| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert len(written) == 6
    for code in written:
        assert eval(code.replace("...", "'mlp.gate_up_proj'"), dict(vars(tensor_names)))


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The family, as section 4 adds it, with its tiny model, as section 5 does."""
    assert NAME not in families.BY_MODEL_TYPE, f"shoal has {NAME} now: the page needs another example"
    module = ModuleType(f"shoal.models.families.{NAME}")
    (code,) = blocks(NEW)
    exec(compile(code, NEW, "exec"), vars(module))
    family = vars(module)["FAMILY"]
    (entry,) = blocks("tests/support/tiny_families.py: SIZES")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(families.FAMILIES, family.name, family)
    monkeypatch.setitem(families.BY_MODEL_TYPE, family.name, family)
    for name, sizes in eval(f"{{{entry}}}", dict(vars(tiny_families))).items():
        monkeypatch.setitem(tiny_families.SIZES, name, sizes)
    return family


def test_it_is_refused_before_it_is_added() -> None:
    with pytest.raises(UnsupportedModel, match=f"model_type '{NAME}' is not supported"):
        spec_from_config(json.loads(AutoConfig.for_model(NAME).to_json_string()), "m")


def test_the_file_is_called_as_the_family(added: Any) -> None:
    assert added.name == NAME
    assert NAME in {kind for kind, _ in tiny_families.SIZES.values()}
    assert added.safetensors.names != tensor_names.HUGGING_FACE


@pytest.mark.parametrize("code", blocks("check"), ids=["safetensors", "gguf"])
@pytest.mark.usefixtures("added")
def test_logits_are_those_of_transformers(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    done: dict[str, Any] = {}
    exec(compile(code, "docs/families.md", "exec"), done)
    np.testing.assert_allclose(done["ours"], done["theirs"], atol=1e-4, rtol=1e-4)
    assert re.search(r"^\d\.\de-\d\d of \d+\.\d$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("left_out", ["attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"])
def test_the_tiny_model_would_show_a_forgotten_factor(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    get = ConfigJson.get
    monkeypatch.setattr(ConfigJson, "get", lambda self, key, default=None: default if key == left_out else get(self, key, default))
    done: dict[str, Any] = {}
    exec(compile(blocks("check")[0], "docs/families.md", "exec"), done)
    assert np.abs(done["ours"] - done["theirs"]).max() > 0.01


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("norm", [True, False])
def test_norms_after_are_there_or_not(norm: bool, tmp_path: Path) -> None:
    built = tiny_families.model(NAME, use_post_norm=norm)
    ours = Stages(SafetensorsWeights(tiny.saved(built, tmp_path))).logits(tiny.TOKENS)
    np.testing.assert_allclose(ours, tiny.logits(built, tiny.TOKENS), atol=1e-4, rtol=1e-4)
