"""The trained vocabulary of SmolLM2: against ids that llama.cpp gave (recorded), and by properties."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.models.weights import GgufWeights
from shoal.text.tokenizer import Tokenizer
from tests.support import health_checks

# What llama-server's /tokenize (b9844) answers for SmolLM2-135M-Instruct, special tokens parsed.
SMOLLM2: list[tuple[str, list[int]]] = [
    ("", []),
    ("  a", [216, 253]),
    ("Hello, world!", [19556, 28, 905, 17]),
    ("tabs\t\tand\n\n\nnewlines \n \n x", [100, 7366, 197, 197, 397, 1116, 198, 2241, 5110, 3717, 3717, 1792]),
    (
        "def f(x):\n    return x**2 + 12345  # ok\n",
        [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 1232, 216, 33, 34, 35, 36, 37, 216, 907, 10907, 198],
    ),
    (
        "12345 678,901.50 ½ ² ٣٤٥ 一二三",
        [
            33,
            34,
            35,
            36,
            37,
            216,
            38,
            39,
            40,
            28,
            41,
            32,
            33,
            30,
            37,
            32,
            216,
            16738,
            216,
            19133,
            216,
            164,
            113,
            164,
            114,
            164,
            115,
            216,
            22924,
            16736,
            230,
            7906,
            227,
        ],
    ),
    ("é Å NFC?", [85, 151, 219, 330, 151, 228, 442, 12236, 47]),
    ("日本語のテキスト", [23274, 115, 40993, 179, 120, 248, 26453, 11100, 224, 10391, 251, 10391, 134, 11100, 226]),
    ("한국어 텍스트", [33085, 246, 181, 130, 251, 183, 240, 129, 48138, 223, 231, 183, 228, 114, 184, 228, 133]),
    ("Привет, мир", [155, 249, 46879, 16464, 32547, 28, 41337, 7872, 9175]),
    ("مرحبا بالعالم", [21706, 20602, 44626, 31462, 10805, 45726, 22208, 34966, 22208, 21706]),
    ("नमस्ते दुनिया", [30658, 35090, 38770, 16525, 26293, 30581, 12335, 116, 42990, 30658, 27011, 32932, 18075]),
    (
        "🦙🦙🦙 👨\u200d👩\u200d👧\u200d👦 🇩🇪 ❤️",
        [
            10813,
            116,
            243,
            10813,
            116,
            243,
            10813,
            116,
            243,
            15107,
            235,
            118,
            321,
            231,
            10813,
            235,
            119,
            321,
            231,
            10813,
            235,
            117,
            321,
            231,
            10813,
            235,
            116,
            15107,
            225,
            119,
            10813,
            225,
            120,
            4636,
            247,
            114,
            31752,
        ],
    ),
    ("I'll we're DON'T it's I'LL 'S", [57, 3060, 392, 2316, 422, 2154, 23, 68, 357, 506, 339, 23, 16421, 637, 67]),
    ("<|im_start|>user\nhi<|im_end|>\n", [1, 4093, 198, 6004, 2, 198]),
    ("\xa0nbsp\u3000ideo\u200bzw", [15442, 94, 32093, 12109, 218, 8496, 321, 229, 106, 103]),
    ("\r\n\r\n\r x", [16980, 1792]),
    ("aaaaaaaaaaaaaaaaaa", [46880, 46880, 46880, 46880, 11510]),
    ("\x00\x01\x7f", [190, 191, 217]),
    ("   \n   \t  ", [333, 472, 197, 256]),
    ("(((()))){}[]", [48519, 1000, 7754, 6150, 75, 77]),
]


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_weights: GgufWeights) -> Tokenizer:
    return Tokenizer.open(smollm2_weights.file.path, smollm2_weights.file.meta)


@pytest.mark.real
@pytest.mark.parametrize(("text", "tokens"), SMOLLM2, ids=range(len(SMOLLM2)))
def test_as_llama_cpp(text: str, tokens: list[int], smollm2_tokenizer: Tokenizer) -> None:
    assert smollm2_tokenizer.encode(text) == tokens


@pytest.mark.real
@settings(suppress_health_check=health_checks.EVERY)
@given(st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs", "Cc"]), max_size=200))  # it lacks some bytes
def test_any_text_survives_the_trained_vocabulary(smollm2_tokenizer: Tokenizer, text: str) -> None:
    assert smollm2_tokenizer.decode(smollm2_tokenizer.encode(text)) == text


@pytest.mark.real
def test_a_chat_as_the_trained_template_writes_it(smollm2_tokenizer: Tokenizer) -> None:
    tokens = smollm2_tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    assert tokens[:2] == [1, 9690]
    assert tokens[-7:] == smollm2_tokenizer.encode("Hello<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2_tokenizer.stop_tokens >= {2, 0}
