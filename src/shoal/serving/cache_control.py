"""What a request's Cache-Control says: RFC 9111, section 5.2.1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_DIRECTIVE = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^\s",;]*)))?\s*(?:,|$)""")
_SECONDS = re.compile(r"[0-9]+")
_LONGEST = 2**31
"""What any greater number of seconds counts as (RFC 9111, section 1.2.2)."""


@dataclass(frozen=True)
class CacheControl:
    no_store: bool = False
    """Neither is a kept answer given, nor is this one kept."""
    no_cache: bool = False
    """No kept answer is given, but this one is kept."""
    only_if_cached: bool = False
    """A kept answer, or none."""
    max_age: int | None = None
    """Most seconds since a kept answer was made; None: any."""

    @property
    def reads(self) -> bool:
        return not self.no_store and not self.no_cache

    def oldest(self, lifetime: float) -> float:
        """Seconds since a kept answer was made, at most. lifetime: of any kept answer."""
        return lifetime if self.max_age is None else min(lifetime, self.max_age)


def cache_control(values: Sequence[str]) -> CacheControl:
    """values: of all headers of that name. Directives that are unknown or malformed are ignored; of a repeated one the first counts."""
    found: dict[str, str] = {}
    for value in values:
        at = 0
        while at < len(value):
            if (directive := _DIRECTIVE.match(value, at)) is None:
                at = value.find(",", at) + 1 or len(value)
                continue
            name, quoted, plain = directive.groups()
            found.setdefault(name.lower(), (plain or "") if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
            at = directive.end()
    return CacheControl("no-store" in found, "no-cache" in found, "only-if-cached" in found, _seconds(found.get("max-age")))


def _seconds(text: str | None) -> int | None:
    if text is None or _SECONDS.fullmatch(text) is None:
        return None
    digits = text.lstrip("0") or "0"
    return _LONGEST if len(digits) > 10 else min(int(digits), _LONGEST)
