"""Which section of the configuration file is about a model, and what it changes for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.config import EngineSettings, HeadSettings, KvType, ModelSection, ModelSettings, Precision
from shoal.errors import ConfigError
from shoal.models.description import Description
from shoal.models.sections import section_of, unserved
from shoal.node.model_engine import ModelOffer
from shoal.testing import toy


def named(*names: str) -> tuple[ModelSection, ...]:
    return tuple(ModelSection(name, f"config.toml:{line}: [models.{name}]", {}) for line, name in enumerate(names, 1))


@pytest.mark.parametrize(
    ("section", "reference"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("org/Repo:Q4_K_M", "org/Repo:Q4_K_M"),
        ("org/Repo:Q4_K_M", "hf:org/Repo:Q4_K_M"),
        ("hf:org/Repo:Q4_K_M", "org/Repo:Q4_K_M"),
        ("https://huggingface.co/org/Repo", "hf:org/Repo"),
        ("org/Repo:Q4_K_M", "hf:org/Repo:Q4_K_M@main"),
        ("mine", "/models/mine.gguf"),
        ("/models/mine.gguf", "/models/mine.gguf"),
        ("/models/../models/mine.gguf", "/models/mine.gguf"),
        ("unknown to this machine", "unknown to this machine"),
    ],
)
def test_a_section_may_have_the_name_of_the_api_or_any_reference(section: str, reference: str) -> None:
    other, wanted = named("tinyllama-1.1b", section)
    assert section_of((other, wanted), reference) is wanted


@pytest.mark.parametrize(
    ("section", "reference"),
    [
        ("org/Repo", "org/Repo:Q4_K_M"),
        ("org/Repo:Q4_K_M", "org/Repo:Q8_0"),
        ("/elsewhere/mine.gguf", "/models/mine.gguf"),
        ("smollm2", "smollm2-135m"),
        ("nothing like it", "smollm2-135m"),
    ],
)
def test_it_is_not_about_others(section: str, reference: str) -> None:
    assert section_of(named(section), reference) is None
    assert section_of((), reference) is None


def test_sections_of_models_that_are_not_served_are_told_with_what_may_be_meant() -> None:
    sections = named("smolm2-135m", "hf:org/Repo", "mine", "idle")
    assert unserved(sections, ["smollm2-135m", "org/Repo", "/models/mine.gguf"]) == [
        "config.toml:1: [models.smolm2-135m] is about a model that --model does not name (did you mean 'smollm2-135m'?)",
        "config.toml:4: [models.idle] is about a model that --model does not name",
    ]
    assert unserved((), ["smollm2-135m"]) == []


def test_two_sections_of_one_model_are_told_with_their_lines() -> None:
    with pytest.raises(ConfigError, match=r"config\.toml:2: \[models\.hf:org/x\]: the model org/x has a section already: config\.toml:1: "):
        section_of(named("org/x", "hf:org/x"), "org/x")


HEAD = HeadSettings(engine=EngineSettings(context=1024, slots=16, kv_type=KvType.FP32), replicas=3)


def test_what_a_section_does_not_set_is_as_for_all_models() -> None:
    assert HEAD.of_model(None) == ModelSettings(engine=HEAD.engine, replicas=3)
    chosen = HEAD.of_model(ModelSection("x", "", {"context": 64, "precision": Precision.Q4, "priority": 5, "nodes": "b, a,"}))
    assert (chosen.engine.context, chosen.engine.precision) == (64, Precision.Q4)
    assert (chosen.engine.slots, chosen.engine.kv_type, chosen.replicas) == (16, KvType.FP32, 3)
    assert (chosen.priority, chosen.pinned) == (5, {"a", "b"})
    assert HEAD.engine.context == 1024, "others are as before"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"batch_size": 17, "batch_delay": 0.1}, "batch-size 17 would never be reached: slots is 16"),
        ({"slots": 4, "batch_size": 8, "batch_delay": 0.1}, "batch-size 8 would never be reached: slots is 4"),
        ({"batch_size": 8}, "batch-size gathers sequences for at most batch-delay seconds: set that, too"),
        ({"context": 1}, "--context must be at least 16"),
    ],
)
def test_what_does_not_go_together_is_told_with_its_place_before_anything_is_served(values: dict[str, object], told: str) -> None:
    section = ModelSection("x", "config.toml:7: [models.x]", values)
    with pytest.raises(ConfigError) as caught:
        HeadSettings(engine=HEAD.engine, sections=(section,))
    assert str(caught.value).startswith(f"config.toml:7: [models.x]: {told}")


def test_an_offer_has_all_of_it() -> None:
    section = ModelSection("x", "", {"context": 64, "replicas": 2, "priority": -1, "nodes": "a", "batch_delay": 0.5})
    model = Description("x", "hf:x@1", Path("x"), toy.spec(3), None, None)
    offer = ModelOffer.of(model, "org/x", HEAD.of_model(section))
    assert (offer.engine.model, offer.engine.context, offer.replicas, offer.priority, offer.pinned) == ("org/x", 64, 2, -1, {"a"})
    assert (offer.batching.size, offer.batching.delay) == (16, 0.5), "as many as there are slots"
    plain = ModelOffer.of(model, "org/x", HEAD.of_model(None))
    assert (plain.batching.delay, plain.replicas, plain.pinned) == (0.0, 3, frozenset())
