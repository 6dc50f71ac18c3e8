"""The code that a person carries from the head to a new machine."""

from __future__ import annotations

from collections.abc import Callable

from shoal.errors import ConfigError

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U
LENGTH = 8
_READ_AS = {letter: letter for letter in ALPHABET} | {"O": "0", "I": "1", "L": "1"}
_MEANING = _READ_AS | {letter.lower(): digit for letter, digit in _READ_AS.items()}
_SEPARATORS = frozenset(" \t\r\n-_.‐‑–—\u00a0")


class PairingCode:
    """8 characters, '7QFK-3M9X'. The first identifies the code and is not secret; the other seven are 35 random bits."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Reads what a person typed: case, separators, O for 0, and I or L for 1 do not matter. Raises ConfigError."""
        typed = [letter for letter in text if letter not in _SEPARATORS]
        if len(typed) != LENGTH or not all(letter in _MEANING for letter in typed):
            raise ConfigError(
                "that is not a pairing code; a code has 8 letters and digits, like 7QFK-3M9X, and no U: read it again from the head"
            )
        self._text = "".join(_MEANING[letter] for letter in typed)

    @classmethod
    def draw(cls, nameplate: str, randbelow: Callable[[int], int]) -> PairingCode:
        """A new code with a nameplate, one character of ALPHABET. `randbelow(n)` must be cryptographically secure."""
        return cls(nameplate + "".join(ALPHABET[randbelow(len(ALPHABET))] for _ in range(LENGTH - 1)))

    @property
    def nameplate(self) -> str:
        """Tells a head's codes apart; sent in the clear."""
        return self._text[0]

    @property
    def password(self) -> bytes:
        """Used only in the key exchange."""
        return self._text.encode("ascii")

    def __str__(self) -> str:
        return f"{self._text[:4]}-{self._text[4:]}"

    def __repr__(self) -> str:
        return "PairingCode(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PairingCode) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)
