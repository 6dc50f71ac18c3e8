"""How the byte-level vocabularies of GGUF files want text to be split before merging, by the names in llama-vocab.cpp.

A rule is a list of expressions; each splits what the ones before it left whole. They are those of the models' tokenizer.json;
llama.cpp uses variants that its own engine can run.
"""

from __future__ import annotations

from dataclasses import dataclass

_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _SYMBOLS, _SPACES = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_ASCII_SYMBOLS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_CASED = "".join(
    "-".join(f"\\x{{{end}}}" for end in part.split("-"))
    for part in [
        "41-5A",
        "61-7A",
        "B5",
        "C0-D6",
        "D8-F6",
        "F8-1BA",
        "1BC-1BF",
        "1C4-293",
        "295-2AF",
        "370-373",
        "376",
        "377",
        "37B-37D",
        "37F",
        "386",
        "388-38A",
        "38C",
        "38E-3A1",
        "3A3-3F5",
        "3F7-481",
        "48A-52F",
        "531-556",
        "10A0-10C5",
        "13A0-13F5",
        "13F8-13FD",
        "1C90-1CBA",
        "1CBD-1CBF",
        "1D00-1D2B",
        "1D6B-1D77",
        "1D79-1D9A",
        "1E00-1F15",
        "1F18-1F1D",
        "1F20-1F45",
        "1F48-1F4D",
        "1F50-1F57",
        "1F59",
        "1F5B",
        "1F5D",
        "1F5F-1F7D",
        "1F80-1FB4",
        "1FB6-1FBC",
        "1FBE",
        "1FC2-1FC4",
        "1FC6-1FCC",
        "1FD0-1FD3",
        "1FD6-1FDB",
        "1FE0-1FEC",
        "1FF2-1FF4",
        "1FF6-1FFC",
        "2102",
        "2107",
        "210A-2113",
        "2115",
        "2119-211D",
        "2124",
        "2126",
        "2128",
        "212A-212D",
        "212F-2134",
        "2139",
        "213C-213F",
        "2145-2149",
        "214E",
        "2183",
        "2184",
        "2C00-2C7B",
        "2C7E-2CE4",
        "2CEB-2CEE",
        "2CF2",
        "2CF3",
        "A640-A66D",
        "A680-A69B",
        "A722-A76F",
        "A771-A787",
        "A78B-A78E",
        "AB70-ABBF",
        "FB00-FB06",
        "FB13-FB17",
        "FF21-FF3A",
        "FF41-FF5A",
        "10400-1044F",
        "104B0-104D3",
        "104D8-104FB",
        "10C80-10CB2",
        "10CC0-10CF2",
        "118A0-118DF",
        "1E900-1E943",
    ]
)
"""Letters with a case, by code point: deepseek-llm's first rule lists them one by one."""


def _cased_words(suffix: str, digits: str, without: str = "", slash: str = "/") -> str:
    """Words that begin with capitals and continue in small letters; with `without`, they contain none of these characters."""
    upper, lower = f"[{_UPPER}{without}]", f"[{_LOWER}{without}]"
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = f"{lead}{upper}*{lower}+{suffix}|{lead}{upper}+{lower}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n{slash}]*|{_SPACES}"


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
QWEN2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_GPT4O = _cased_words(f"{_SUFFIX}?", r"\p{N}{1,3}")
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK = rf"{_ASCII_SYMBOLS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_ASIAN = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_RUNS = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s"
_LETTERS = r"\p{L}\p{M}*"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class SplitRule:
    """How text is split. whole_words: a word in the vocabulary becomes one token, whatever the merges would do.
    begins: texts begin with BOS if the file does not say. composes: characters are composed (NFC) first.
    """

    splits: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False
    composes: bool = False


def _rules() -> dict[str, SplitRule]:
    gpt2, digits = SplitRule((GPT2,)), SplitRule((r"\p{N}", GPT2))
    llama3, qwen2 = SplitRule((LLAMA3,), whole_words=True, begins=True), SplitRule((QWEN2,))
    deepseek3, gpt4o = SplitRule((r"\p{N}{1,3}", _CJK, _DEEPSEEK)), SplitRule((_GPT4O,))
    by_rule: list[tuple[SplitRule, str]] = [
        (SplitRule((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), "default"),
        (gpt2, "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion"),
        (gpt2, "granite-docling exaone4"),
        (digits, "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
        (llama3, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
        (SplitRule((LLAMA3,)), "dbrx smaug-bpe chatglm-bpe"),
        (SplitRule((LLAMA3,), whole_words=True), "glm4 glm5"),
        (SplitRule((LLAMA3.replace(r"\s+(?!\S)|\s+", _RUNS),)), "jais-2"),
        (SplitRule((QWEN2,), composes=True), "qwen2"),
        (qwen2, "deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2"),
        (
            SplitRule((QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}"),), composes=True),
            "qwen35",
        ),
        (
            SplitRule(("[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+")),
            "deepseek-llm",
        ),
        (SplitRule(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")), "deepseek-coder"),
        (deepseek3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
        (SplitRule((_FROM_THE_RIGHT, _ASIAN, _DEEPSEEK)), "afmoe"),
        (SplitRule((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")), "falcon"),
        (SplitRule((_BLOOM,)), "poro-chat bloom gpt3-finnish"),
        (SplitRule((_BLOOM, r"\p{N}")), "viking"),
        (SplitRule((_cased_words("", r"\p{N}"),), whole_words=True, begins=True), "tekken"),
        (gpt4o, "gpt-4o llama4 kanana2 talkie minimax-m2"),
        (SplitRule((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)), "tiny_aya cohere2moe"),
        (
            SplitRule(
                (
                    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:{_LETTERS}(?: {_LETTERS})*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
                )
            ),
            "exaone-moe",
        ),
        (SplitRule((r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", GPT2), begins=True), "chameleon"),
        (SplitRule((_GPT4O,), whole_words=True), "granite-embed-multi-97m"),
        (SplitRule((r"\p{Han}+|" + _cased_words(f"{_SUFFIX}?", r"\p{N}{1,3}", r"&&[^\p{Han}]", ""),)), "kimi-k2"),
        (SplitRule((r"\p{N}+", r"(?=(\d{3})+(?!\d))")), "superbpe"),
        (SplitRule((rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}|{_SYMBOLS}|\s*[\r\n]|\s+(?!\S)|\s+",)), "bailingmoe bailingmoe2 llada-moe"),
        (SplitRule((rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)), "seed-coder"),
        (SplitRule((r"\p{N}{1,3}", rf"{_SUFFIX}|{_WORD}|\p{{N}}+|{_SYMBOLS}|{_SPACES}"), whole_words=True), "minicpm5"),
    ]
    return {name: rule for rule, names in by_rule for name in names.split()}


RULES = _rules()
DEFAULT = "default"
"""llama.cpp's rule if a file does not name one."""
