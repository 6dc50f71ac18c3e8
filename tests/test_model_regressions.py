"""What once went wrong in models and text: each test holds that it no longer does."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.config import Precision
from shoal.errors import CorruptModel, FetchError, InvalidRequest, ShoalError, UserError
from shoal.models import packages
from shoal.models.gguf_file import GgufFile
from shoal.models.safetensors_file import SafetensorsFiles
from shoal.models.sources import pin, pull, pull_description, pull_layers
from shoal.models.weights import GgufWeights, SafetensorsWeights, open_spec, open_weights
from shoal.text.chat import ChatTemplate
from shoal.text.detokenizer import Detokenizer
from shoal.text.tokenizer import Tokenizer
from tests.support import tiny
from tests.support.gguf_writer import write_model
from tests.support.hub_server import Hub
from tests.support.stages import Stages
from tests.support.vocabularies import byte_level, sentencepiece
from tests.test_gguf_file import entry, file, string, tensor
from tests.test_safetensors_file import one, written
from tests.test_sources import Registry, tarred, zipped

# 1 detokenizer


def streamed(tokenizer: Tokenizer, tokens: list[int], prompt: list[int] = []) -> str:  # noqa: B006
    stream = Detokenizer(tokenizer, prompt)
    return "".join(stream.push(t) for t in tokens) + stream.finish()


@pytest.mark.parametrize("text", ["🦙🦙🦙", "ok 🇩🇪🇫🇷 ok", "👨‍👩‍👧 x"])
def test_emoji_from_byte_tokens(text: str) -> None:
    tokenizer = Tokenizer.open(Path("p"), sentencepiece())
    tokens = tokenizer.encode(text, bos=False)
    assert streamed(tokenizer, tokens) == tokenizer.decode(tokens)


def test_byte_tokens_after_a_prompt_that_ends_in_them() -> None:
    tokenizer = Tokenizer.open(Path("p"), sentencepiece())
    prompt, answer = tokenizer.encode("é你你", bos=False), tokenizer.encode("x🦙", bos=False)[2:]
    assert streamed(tokenizer, answer, prompt) == "🦙"


def test_a_character_after_junk() -> None:
    tokenizer = Tokenizer.open(Path("b"), byte_level())
    byte = {tokenizer.token_bytes(i): i for i in range(256)}
    tokens = [byte[bytes([b])] for b in b"\xff" * 8 + "🦙".encode()]
    assert streamed(tokenizer, tokens).endswith("🦙")


# 2 sources


def test_a_middle_stage_of_a_model_in_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tiny.saved(tiny.model("llama"), tmp_path / "made")
    with Hub("org/toy", {f.name: f.read_bytes() for f in home.iterdir()}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
        open_weights(pull_layers("hf:org/toy", range(1, 2), False, False, directory=tmp_path))


@pytest.mark.parametrize("call", [pin, pull, pull_description, lambda t: pull_layers(t, range(1), True, True)])
@pytest.mark.parametrize("text", ["hf:../..", "hf:-a/b", "hf:a..b/c"])
def test_names_that_the_hub_does_not_allow(call: Any, text: str) -> None:
    with pytest.raises(UserError):
        call(text)


@pytest.mark.parametrize("call", [pin, pull, pull_description, lambda t: pull_layers(t, range(1), True, True)])
def test_a_hub_that_is_not_there(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    with pytest.raises(FetchError):
        call("hf:org/toy")


def test_an_index_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Hub("org/toy", {"config.json": b"{}", "model.safetensors.index.json": b"[]"}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(ShoalError):
            pull("hf:org/toy", directory=tmp_path)


@pytest.mark.parametrize("call", [pull_description, lambda t: pull_layers(t, range(1), True, True)])
def test_a_full_disk_while_a_node_fetches(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with Hub("org/toy", {"config.json": b"{}", "model.safetensors": b"weights"}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
        monkeypatch.setattr("shoal.models.hub_folder.HubFolder.link", full)
        with pytest.raises(FetchError, match="disk is full"):
            call("hf:org/toy")


def test_a_kept_package_that_is_damaged_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch)
    part = registry.part("one", zipped(m=b"x"))
    registry.offer(b"x", part)
    parts = tmp_path / "models" / "toy" / "parts"
    parts.mkdir(parents=True)
    (parts / f"{part.sha256}.package").write_bytes(b"PK half")
    assert pull("toy", directory=tmp_path).read_bytes() == b"x"


def test_an_archive_cut_in_its_member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch)
    content = np.random.default_rng(0).bytes(200_000)
    registry.offer(content, registry.part("one", tarred(m=content)[:100_000], "npm"))
    with pytest.raises(FetchError):
        pull("toy", directory=tmp_path)


def test_an_archive_damaged_in_its_member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch)
    whole = bytearray(zipped(m=b"hello " * 1000))
    whole[33:40] = b"\xff" * 7
    registry.offer(b"hello " * 1000, registry.part("one", bytes(whole)))
    with pytest.raises(FetchError):
        pull("toy", directory=tmp_path)


def test_the_clients_output_is_closed(tmp_path: Path) -> None:
    import gc
    import subprocess
    import sys

    seen: list[Any] = []
    popen = subprocess.Popen

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(popen(*args, **options))
        return seen[0]

    packages.subprocess.Popen = watched  # type: ignore[misc]
    try:
        packages._run_client([sys.executable, "-c", ""], packages.Part("pypi", "one", "1", "", 0, "m"), lambda _: None, tmp_path)
        closed = seen[0].stdout.closed
        seen[0].stdout.close()
        assert closed
    finally:
        packages.subprocess.Popen = popen  # type: ignore[misc]
        gc.collect()


# 3 damaged files


TENSORS = {
    "overflowing sizes": tensor("t", (2**32, 2**32)),
    "a size beyond int64": tensor("t", (32, 2**63)),
    "a row beyond int64": tensor("t", (2**63,)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_sizes_that_overflow(name: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptModel):
        GgufFile(file(tmp_path / "m", tensors=[TENSORS[name]], data=bytes(64)))


def test_arrays_in_arrays_without_end(tmp_path: Path) -> None:
    with pytest.raises(CorruptModel):
        GgufFile(file(tmp_path / "m", [entry("x", 9, struct.pack("<IQ", 9, 1) * 5000)]))


@pytest.mark.parametrize("value", [entry("general.alignment", 8, string("x")), entry("general.alignment", 9, struct.pack("<IQ", 4, 0))])
def test_an_alignment_of_another_type(value: bytes, tmp_path: Path) -> None:
    with pytest.raises(CorruptModel):
        GgufFile(file(tmp_path / "m", [value]))


def _llama(tmp_path: Path, extra: dict[str, Any]) -> GgufWeights:
    built = tiny.model("llama", num_hidden_layers=1)
    path = write_model(tmp_path / "m.gguf", built, "llama")
    weights = GgufWeights(path)
    from shoal.models.spec import spec_from_gguf

    meta = {**weights.file.meta, **{f"llama.{k}": v for k, v in extra.items()}}
    spec_from_gguf(meta, {n: t.shape for n, t in weights.file.tensors.items()}, (), path).check(path)
    return weights


@pytest.mark.parametrize(
    "extra",
    [
        {"block_count": "x"},
        {"block_count": float("nan")},
        {"block_count": float("inf")},
        {"context_length": [1, "x"]},
        {"rope.freq_base": "x"},
        {"attention.head_count_kv": []},
        {"attention.key_length": [1]},
        {"context_length": 0},
        {"rope.freq_base": 0.0},
        {"rope.freq_base": float("nan")},
        {"attention.layer_norm_rms_epsilon": "x"},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 0.0},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 0},
    ],
)
def test_metadata_of_other_types(extra: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ShoalError):
        _llama(tmp_path, extra)


def test_a_number_of_layers_that_cannot_be(tmp_path: Path) -> None:
    """2**32 - 1 would take 32 GiB for the tuple of windows alone."""
    tracemalloc.start()
    try:
        with pytest.raises(CorruptModel):
            _llama(tmp_path, {"block_count": 2**23})
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [4, 12])
def test_rope_factors_of_another_length(length: int, tmp_path: Path) -> None:
    weights = write_model(tmp_path / "m.gguf", tiny.model("llama"), "llama", factors=[1.0] * length)
    with pytest.raises(CorruptModel):
        Stages(GgufWeights(weights))


HEADERS = {
    "negative sizes": one(shape=(-2, 4), offsets=(32, 0)),
    "sizes that overflow": one(shape=(2**32, 2**32), offsets=(0, 0)),
    "a size beyond int64": one(shape=(2**70,)),
    "infinite": b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}',
    "without end": b'{"t":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_headers_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptModel):
        SafetensorsFiles([written(tmp_path / "m.safetensors", HEADERS[name])])


def _changed(directory: Path, **changes: Any) -> Path:
    config = directory / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return directory


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": float("inf")},
        {"num_hidden_layers": 2**23},
        {"rope_parameters": {"rope_type": "linear", "factor": "x"}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}},
        {"quantization_config": "gptq"},
        {"head_dim": 10**30},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": "x"}},
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ShoalError):
        open_spec(_changed(tiny.saved(tiny.model("llama"), tmp_path), **changes))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_norm",
        "model.layers.1.input_layernorm",
        "model.norm",
        "model.layers.1.self_attn.q_proj.bias",
    ],
)
def test_vectors_of_another_length(name: str, tmp_path: Path) -> None:
    """A short q_norm is read past its end by the kernels; a short norm is a ValueError of theirs that nobody catches."""
    from safetensors.numpy import save_file

    built = tiny.model("qwen3", head_dim=32, attention_bias=True)
    tiny.saved(built, tmp_path)
    state = {n: t.detach().numpy() for n, t in built.state_dict().items()}
    key = name if name.endswith("bias") else f"{name}.weight"
    state[key] = np.ascontiguousarray(state[key][:8])
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CorruptModel):
        Stages(SafetensorsWeights(tmp_path), precision=Precision.FP32)


# 4 tokenizers and templates


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3", "tekken"])
def test_pre_tokenisers_that_begin_with_bos(pre: str) -> None:
    """llama-vocab.cpp sets add_bos for them; converters leave the key out."""
    tokenizer = Tokenizer.open(Path("b"), byte_level(pre, bos_token_id=266))
    assert tokenizer.encode("hello")[0] == 266


def test_tekken_ignores_merges() -> None:
    meta = byte_level("tekken")
    meta["tokenizer.ggml.tokens"][0] = "hellohello"  # not reachable by merges
    assert Tokenizer.open(Path("b"), meta).encode("hellohello", bos=False) == [0]


def test_text_that_is_not_unicode() -> None:
    """tokenizers 0.23 answers a lone surrogate with TypeError, not UnicodeEncodeError."""
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        Tokenizer.open(Path("b"), byte_level()).encode("\ud800")


def test_the_unknown_token_is_special() -> None:
    assert Tokenizer.open(Path("p"), sentencepiece()).encode("<unk>", bos=False) == [0]


BAD_META: list[dict[str, Any]] = [
    {"bos_token_id": "x"},
    {"bos_token_id": -1},
    {"eos_token_id": [1]},
    {"token_type": "x"},
    {"tokens": 5},
    {"merges": ["a"]},
    {"merges": [5]},
]


@pytest.mark.parametrize("changes", BAD_META, ids=str)
def test_vocabularies_that_do_not_hold_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ShoalError):
        Tokenizer.open(Path("b"), byte_level(**changes))


@pytest.mark.parametrize(
    "changes",
    [{"scores": [1.0]}, {"unknown_token_id": 10**6}, {"unknown_token_id": "x"}, {"scores": ["a"] * 293}],
    ids=str,
)
def test_sentencepiece_vocabularies_that_do_not_hold_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ShoalError):
        Tokenizer.open(Path("p"), sentencepiece(**changes))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", {"eos_token_id": "x"}),
        ("tokenizer_config.json", {"bos_token": {}}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}),
        ("tokenizer_config.json", {"chat_template": 5}),
        ("tokenizer_config.json", {"eos_token": 5}),
    ],
)
def test_tokenizer_directories_that_do_not_hold_together(name: str, content: Any, tmp_path: Path) -> None:
    Tokenizer.open(Path("b"), byte_level())._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(json.dumps(content))
    with contextlib.suppress(ShoalError):
        Tokenizer.open(tmp_path)


def test_bytes_of_tokens_under_a_sequence_of_decoders(tmp_path: Path) -> None:
    from tokenizers import decoders

    backend = Tokenizer.open(Path("b"), byte_level())._backend
    backend.decoder = decoders.Sequence([decoders.ByteLevel()])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.token_bytes(tokenizer.encode("a hello", bos=False)[-1]) == b" hello"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 'x' * (10 ** 100) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ (10 ** 400) | float }}{{ 1.0 * 10 ** 400 }}",
        "{{ messages[0].content.index('z') }}",
        "{{ strftime_now(5) }}",
    ],
)
def test_templates_that_fail(source: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate(source, {}, "m").render([{"role": "user", "content": "x"}])


def test_the_rest_of_transformers_template_environment() -> None:
    source = "{% generation %}{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}{% endgeneration %}"
    assert ChatTemplate(source, {}, "m").render([{"b": 1, "a": 2}]) == '[{"a":2,"b":1}]'
