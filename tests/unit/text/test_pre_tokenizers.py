"""How byte-level vocabularies split text: as llama.cpp does, by every name that it knows for a model of a family that runs here."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from shoal.errors import UnsupportedModel
from shoal.text import pre_tokenizers
from shoal.text.tokenizer import Tokenizer
from tests.support.vocabularies import byte_level, telling

PROBE = "I'LL x's 1234567 ab12 HTTPServer camelCase!?\n\n  y=$z;/\n½٣ naïve, Ärger日本語 漢字1。\t\t`^`\r\n x   9"
# What llama.cpp (b9844) makes of it with the vocabulary `telling`, whose tokens are the pieces, up to 14 bytes of each.
# fmt: off
RECORDED = [
    ('default', "I¦'¦LL¦ x¦'¦s¦ ¦123¦456¦7¦ ab¦12¦ HTTPServer¦ camelCase¦!?¦\n\n ¦ y¦=$¦z¦;/¦\n¦½٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`¦^¦`¦\r\n¦ x¦  ¦ ¦9"),
    ('gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion granite-docling exaone4', "I¦'¦LL¦ x¦'s¦ 1234567¦ ab¦12¦ HTTPServer¦ camelCase¦!?¦\n\n ¦ y¦=$¦z¦;/¦\n¦½٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`^`¦\r\n¦ x¦  ¦ 9"),
    ('smollm starcoder refact command-r codeshell exaone minerva-7b mellum2', "I¦'¦LL¦ x¦'s¦ ¦1¦2¦3¦4¦5¦6¦7¦ ab¦1¦2¦ HTTPServer¦ camelCase¦!?¦\n\n ¦ y¦=$¦z¦;/¦\n¦½¦٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`^`¦\r\n¦ x¦   ¦9"),
    ('llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 chatglm-bpe', "I¦'LL¦ x¦'s¦ ¦123¦456¦7¦ ab¦12¦ HTTPServer¦ camelCase¦!?\n\n¦ ¦ y¦=$¦z¦;/\n¦½٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`^`\r\n¦ x¦  ¦ ¦9"),
    ('qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 qwen35 bailingmoe bailingmoe2 llada-moe', "I¦'LL¦ x¦'s¦ ¦1¦2¦3¦4¦5¦6¦7¦ ab¦1¦2¦ HTTPServer¦ camelCase¦!?\n\n¦ ¦ y¦=$¦z¦;/\n¦½¦٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`^`\r\n¦ x¦  ¦ ¦9"),
    ('deepseek-llm', "I¦'¦LL¦ x¦'¦s¦ ¦1234567¦ ab¦12¦ HTTPServer¦ camelCase¦!?¦\n¦\n¦ ¦ y¦=$¦z¦;/¦\n¦½٣¦ na¦ï¦ve¦,¦ Ä¦rger¦日本語¦ ¦漢字¦1¦。¦\t¦\t`^`¦\r¦\n¦ x¦   ¦9"),
    ('deepseek-coder', "I¦'¦LL¦ x¦'¦s¦ ¦1¦2¦3¦4¦5¦6¦7¦ ab¦1¦2¦ HTTPServer¦ camelCase¦!?¦\n¦\n¦ ¦ y¦=$¦z¦;/¦\n¦½¦٣¦ naïve¦,¦ Ärger¦日本語¦ ¦漢字¦1¦。¦\t\t`^`¦\r¦\n¦ x¦   ¦9"),
    ('deepseek-v3 hunyuan-dense joyai-llm', "I¦'LL¦ x¦'s¦ ¦123¦456¦7¦ ab¦12¦ HTTPServer¦ camelCase¦!?\n\n¦ ¦ y¦=$¦z¦;/\n¦½٣¦ naïve¦,¦ Ärger¦日本語¦ ¦漢字¦1¦。¦\t¦\t¦`^`\r\n¦ x¦   ¦9"),
    ('falcon', "I¦'¦LL¦ x¦'¦s¦ ¦123¦456¦7¦ ab¦12¦ HTTPServer¦ camelCase¦!?¦\n\n ¦ y¦=$¦z¦;/¦\n¦½٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t\t¦`^`¦\r\n¦ x¦  ¦ 9"),
    ('poro-chat bloom gpt3-finnish', "I'LL¦ x's¦ 1234567¦ ab12¦ HTTPServer¦ camelCase¦!?\n\n ¦ y=$z;/¦\n¦½٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字1¦。\t\t¦`^`¦\r\n¦ x¦  ¦ 9"),
    ('viking', "I'LL¦ x's¦ ¦1¦2¦3¦4¦5¦6¦7¦ ab¦1¦2¦ HTTPServer¦ camelCase¦!?\n\n ¦ y=$z;/¦\n¦½¦٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。\t\t¦`^`¦\r\n¦ x¦  ¦ ¦9"),
    ('tekken', "I¦'LL¦ x¦'s¦ ¦1¦2¦3¦4¦5¦6¦7¦ ab¦1¦2¦ HTTPServer¦ camel¦Case¦!?\n\n¦ ¦ y¦=$¦z¦;/\n¦½¦٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`^`\r\n¦ x¦  ¦ ¦9"),
    ('gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m', "I'LL¦ x's¦ ¦123¦456¦7¦ ab¦12¦ HTTPServer¦ camel¦Case¦!?\n\n¦ ¦ y¦=$¦z¦;/\n¦½٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`^`\r\n¦ x¦  ¦ ¦9"),
    ('superbpe', "I'LL x's ¦1¦234¦567¦ ab¦12¦ HTTPServer c¦amelCase¦!?\n\n  y=$z;/\n¦½٣¦ naïve, Ärg¦er日本\\xe8¦\\xaa\\x9e 漢字¦1¦。\t\t`¦^`\r\n x   ¦9"),
    ('jais-2', "I¦'LL¦ x¦'s¦ ¦123¦456¦7¦ ab¦12¦ HTTPServer¦ camelCase¦!?\n\n¦ ¦ y¦=$¦z¦;/\n¦½٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`^`\r\n¦ x¦  ¦ ¦9"),
    ('exaone-moe', "I¦'LL¦ x¦'s¦ ¦1¦2¦3¦4¦5¦6¦7¦ ab¦1¦2¦ HTTPServer c¦amelCase¦!?\n¦\n¦ ¦ y¦=$¦z¦;/\n¦½¦٣¦ naïve¦,¦ Ärger日本\\xe8¦\\xaa\\x9e 漢字¦1¦。¦\t¦\t¦`^`\r¦\n¦ x¦  ¦ ¦9"),
    ('chameleon', "I¦'¦LL¦ x¦'¦s¦ ¦1¦2¦3¦4¦5¦6¦7¦ ab¦1¦2¦ HTTPServer¦ camelCase¦!¦?¦\n¦\n¦  ¦y¦=¦$¦z¦;¦/¦\n¦½¦٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`¦^¦`¦\r¦\n¦ x¦  ¦ ¦9"),
    ('seed-coder', "I¦'LL¦ x¦'s¦ ¦1¦2¦3¦4¦5¦6¦7¦ ab¦1¦2¦ HTTPServer¦ camelCase¦!?¦\n\n¦ ¦ y¦=$¦z¦;/¦\n¦½¦٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`^`¦\r\n¦ x¦  ¦ ¦9"),
    ('minicpm5', "I¦'LL¦ x¦'s¦ ¦123¦456¦7¦ ab¦12¦ HTTPServer¦ camelCase¦!?\n\n¦ ¦ y¦=$¦z¦;/\n¦½٣¦ naïve¦,¦ Ärg¦er日本語¦ 漢字¦1¦。¦\t¦\t¦`^`\r\n¦ x¦   ¦9"),
]
# fmt: on
CASES = [(name, pieces) for names, pieces in RECORDED for name in names.split()]


def pieces(text: str, pre: str | None) -> str:
    tokenizer = Tokenizer.open(Path("m"), telling(text, pre))
    return "¦".join(tokenizer.token_bytes(token).decode(errors="backslashreplace") for token in tokenizer.encode(text, bos=False))


@pytest.mark.parametrize(("pre", "recorded"), CASES, ids=[name for name, _ in CASES])
def test_as_llama_cpp(pre: str, recorded: str) -> None:
    assert pieces(PROBE, pre) == recorded


def test_every_rule_was_compared() -> None:
    approximated = {"kimi-k2", "afmoe", "tiny_aya", "cohere2moe"}  # by llama.cpp's own
    newer = {"glm5", "hy_v4"}
    assert {name for name, _ in CASES} | approximated | newer == set(pre_tokenizers.RULES)


@pytest.mark.parametrize(("newer", "same"), [("glm5", "glm4"), ("hy_v4", "deepseek-v3")])
def test_names_of_newer_files(newer: str, same: str) -> None:
    assert pre_tokenizers.RULES[newer] is pre_tokenizers.RULES[same]


@pytest.mark.parametrize("pre", ["afmoe", "tiny_aya", "cohere2moe"])
def test_digits_in_threes_from_the_right(pre: str) -> None:
    assert pieces("x 1234567, 12 345 6789", pre) == "x¦ ¦1¦234¦567¦,¦ ¦12¦ ¦345¦ ¦6¦789"


def test_a_file_that_does_not_say_how_is_split_as_llama_cpp_does_and_says_so() -> None:
    with capture_logs() as said:
        assert pieces(PROBE, None) == pieces(PROBE, "default")
    (warning,) = [line for line in said if line["log_level"] == "warning"]
    assert "does not say how text is to be split" in warning["event"] and warning["rules"] == "default"


def test_a_name_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UnsupportedModel, match=r"'of-tomorrow' is not supported; supported are a\.x-4\.0, .*viking"):
        pieces(PROBE, "of-tomorrow")


def test_qwen2_splits_as_transformers_does() -> None:
    assert pre_tokenizers.QWEN2 == PRETOKENIZE_REGEX


def test_han_characters_are_words_of_their_own_for_kimi() -> None:
    assert pieces("Ärger日本語 camelCase it's", "kimi-k2") == "Ärger¦日本語¦ camel¦Case¦ it's"


@pytest.mark.parametrize(("pre", "begins"), [("falcon3", True), ("tekken", True), ("smaug-bpe", False), ("deepseek-llm", False)])
def test_which_texts_begin_with_bos_where_the_file_is_silent(pre: str, begins: bool) -> None:
    meta = telling("x", pre)
    assert (Tokenizer.open(Path("m"), meta).encode("x")[0] == meta["tokenizer.ggml.bos_token_id"]) == begins


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3", "tekken"])
def test_pre_tokenisers_that_begin_with_bos(pre: str) -> None:
    """llama-vocab.cpp sets add_bos for them; converters leave the key out."""
    tokenizer = Tokenizer.open(Path("b"), byte_level(pre, bos_token_id=266))
    assert tokenizer.encode("hello")[0] == 266


@pytest.mark.parametrize("pre", ["tekken", "glm4"])
def test_words_of_the_vocabulary_whatever_the_merges(pre: str) -> None:
    meta = byte_level(pre)
    meta["tokenizer.ggml.tokens"][0] = "hellohello"  # not reachable by merges
    assert Tokenizer.open(Path("b"), meta).encode("hellohello", bos=False) == [0]
