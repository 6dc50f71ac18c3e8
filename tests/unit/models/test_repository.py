"""Which model of a repository is meant, and what the names of files say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import UserError
from shoal.models.quantization import label, runnable
from shoal.models.repository import Repository, RepositoryFile, choose, folder_of, local_names, offered, variants, weights


def made(*paths: str) -> Repository:
    return Repository("org/name", "c" * 40, tuple(RepositoryFile(path, 10) for path in paths))


def chosen(repository: Repository, tag: str | None) -> str:
    variant = choose(repository, tag)
    return "safetensors" if variant is None else variant.first


LABELS = {
    "Llama-3.2-1B-Instruct-Q4_K_M.gguf": "Q4_K_M",
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf": "Q4_K_M",
    "tinyllama-1.1b-chat-v1.0.Q2_K.gguf": "Q2_K",
    "Q4_K_M/Model-Q4_K_M-00001-of-00002.gguf": "Q4_K_M",
    "x-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
    "x-IQ2_XXS.gguf": "IQ2_XXS",
    "x.fp16.gguf": "F16",
    "x-BF16.gguf": "BF16",
    "Q8_0.gguf": "Q8_0",
    "gpt-oss-mxfp4.gguf": "MXFP4",
    "model.gguf": "",
    "phi-3-mini-4k.gguf": "",
}


@pytest.mark.parametrize(("path", "expected"), LABELS.items())
def test_labels(path: str, expected: str) -> None:
    assert label(path) == expected


def test_what_runs_by_its_label() -> None:
    assert all(
        map(runnable, ["", "Q4_K_M", "UD-Q4_K_XL", "IQ3_M", "Q6_K_L", "F16", "Q5_1", "IQ4_NL", "MXFP4_MOE", "TQ1_0", "NVFP4", "IQ1_S"])
    )
    assert not any(map(runnable, ["Q4_0_4_4", "IQ4_KS", "Q2_0"]))


MANY = made("x-IQ2_XXS.gguf", "x-Q4_K_M.gguf", "x-Q8_0.gguf", "mmproj-x-Q8_0.gguf", "x.imatrix.gguf", "README.md", "x-IQ4_KS.gguf")


@pytest.mark.parametrize(
    ("repository", "tag", "expected"),
    [
        (MANY, None, "x-Q4_K_M.gguf"),
        (MANY, "latest", "x-Q4_K_M.gguf"),
        (MANY, "q8_0", "x-Q8_0.gguf"),
        (MANY, "x-IQ2_XXS.gguf", "x-IQ2_XXS.gguf"),
        (MANY, "iq4_ks", "x-IQ4_KS.gguf"),
        (made("x-Q2_K.gguf", "x-Q8_0.gguf"), None, "x-Q8_0.gguf"),
        (made("x-IQ4_KS.gguf", "x-Q5_K_S.gguf"), None, "x-Q5_K_S.gguf"),
        (made("x-IQ4_KS.gguf"), None, "x-IQ4_KS.gguf"),
        (made("model.gguf"), None, "model.gguf"),
        (made("a/x-UD-Q4_K_M.gguf", "b/x-Q4_K_M.gguf"), "Q4_K_M", "b/x-Q4_K_M.gguf"),
        (made("a/x-UD-Q4_K_M.gguf"), "Q4_K_M", "a/x-UD-Q4_K_M.gguf"),
        (made("x-Q4_K_M-00001-of-00002.gguf", "x-Q4_K_M-00002-of-00002.gguf"), "Q4_K_M", "x-Q4_K_M-00001-of-00002.gguf"),
        (
            made("x-Q4_K_M-00001-of-00002.gguf", "x-Q4_K_M-00002-of-00002.gguf"),
            "x-Q4_K_M-00002-of-00002.gguf",
            "x-Q4_K_M-00001-of-00002.gguf",
        ),
        (made("config.json", "model.safetensors"), None, "safetensors"),
        (made("config.json", "model.safetensors"), "safetensors", "safetensors"),
        (made("config.json", "model.safetensors", "x-Q4_K_M.gguf"), None, "x-Q4_K_M.gguf"),
        (made("config.json", "model.safetensors", "x-F32.gguf"), None, "safetensors"),
        (made("config.json", "model.safetensors", "x-F32.gguf"), "f32", "x-F32.gguf"),
    ],
)
def test_choices(repository: Repository, tag: str | None, expected: str) -> None:
    assert chosen(repository, tag) == expected


def test_what_is_not_there_is_said_with_what_is() -> None:
    with pytest.raises(
        UserError, match=r"has no Q4_K_S \(did you mean 'Q4_K_M'\?\); it has IQ2_XXS, Q4_K_M, Q8_0; shoal does not run IQ4_KS"
    ):
        choose(MANY, "Q4_K_S")
    with pytest.raises(UserError, match="neither GGUF files nor"):
        choose(made("pytorch_model.bin", "config.json"), None)
    assert offered(made("config.json", "model.safetensors")) == "it has safetensors"


def test_a_split_model_that_lacks_a_part_is_none() -> None:
    parts = [f"x-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    (whole,) = variants(made(*parts).files)
    assert [*local_names(whole)] == [f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert [f.path for f in local_names(whole).values()] == parts
    assert variants(made(*parts[:2]).files) == []


def test_other_layouts_of_the_weights_are_left() -> None:
    files = made("config.json", "model.safetensors", "consolidated.safetensors", "onnx/model.safetensors")
    assert [f.path for f in weights(files)] == ["model.safetensors"]
    sharded = made("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert len(weights(sharded)) == 2
    assert weights(made("model.safetensors")) == ()


@given(st.text(min_size=1, max_size=60))
def test_a_model_s_folder_is_one_plain_component(text: str) -> None:
    folder = folder_of(f"{text}.gguf")
    assert folder
    assert "/" not in folder
    assert folder[0] not in ".-"
    assert folder.isascii()


@given(st.lists(st.from_regex(r"(a/)?[a-z]{1,3}-(Q4_K_M|Q8_0|F16|IQ4_KS)\.gguf", fullmatch=True), min_size=1, max_size=6, unique=True))
def test_every_model_can_be_asked_for_by_its_file(paths: list[str]) -> None:
    repository = made(*paths)
    assert all(chosen(repository, path) == path for path in paths)
    assert chosen(repository, None) in paths
