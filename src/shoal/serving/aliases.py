"""Other names for models: what a name stands for, and which aliases may be set. Pure.

An alias may stand for another alias. Following any of them ends at a model: whatever would change that is refused when it is set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shoal.errors import ConfigError
from shoal.spelling import suggestion

LONGEST = 256
"""Characters of an alias, at most."""

Aliases = Mapping[str, str]
"""alias → the name that it stands for"""


def resolved(aliases: Aliases, name: str) -> str:
    """The model that a name stands for in the end; the name itself if it is no alias. aliases: were checked."""
    while (target := aliases.get(name)) is not None:
        name = target
    return name


def standing(aliases: Aliases, models: Collection[str]) -> list[str]:
    """The aliases that stand for one of the models; a model may have gone since they were set."""
    return [alias for alias in aliases if resolved(aliases, alias) in models]


def check(aliases: Aliases, models: Collection[str]) -> None:
    """Raises ConfigError if an alias cannot be one, or if following it does not end at one of the models."""
    for alias in aliases:
        _check_name(alias, models)
        seen, name = [alias], aliases[alias]
        while name in aliases and name not in seen:
            seen.append(name)
            name = aliases[name]
        if name in seen:
            loop = [*seen[seen.index(name) :], name]
            raise ConfigError(f"aliases lead in a circle: {' → '.join(loop)}; let one of them stand for a model")
        if name not in models:
            known = [*models, *aliases]
            raise ConfigError(
                f"the alias '{seen[-1]}' stands for '{name}', which is no model here{suggestion(name, known)}: "
                f"there are {', '.join(models) or 'none'}"
            )


def added(aliases: Aliases, alias: str, target: str, models: Collection[str]) -> dict[str, str]:
    """With one more alias, or another target for it. Raises ConfigError."""
    more = {**aliases, alias: target}
    check(more, models)
    return more


def removed(aliases: Aliases, alias: str) -> dict[str, str]:
    """Without one. Raises ConfigError if there is no such alias, or if others stand for it."""
    if alias not in aliases:
        raise ConfigError(f"there is no alias '{alias}'{suggestion(alias, aliases)}")
    if left := sorted(other for other, target in aliases.items() if target == alias and other != alias):
        raise ConfigError(f"{' and '.join(left)} stand for '{alias}'; remove them first, or let them stand for something else")
    return {other: target for other, target in aliases.items() if other != alias}


def _check_name(alias: str, models: Collection[str]) -> None:
    if not 1 <= len(alias) <= LONGEST or not alias.isprintable() or alias != alias.strip():
        raise ConfigError(f"an alias is a word of 1 to {LONGEST} characters without spaces around it, not {alias[:LONGEST]!r}")
    if alias in models:
        raise ConfigError(f"'{alias}' is the name of a model, so it cannot stand for another")
