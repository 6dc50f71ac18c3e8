"""Which section of the configuration file is about a model."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.config import ModelSection
from shoal.errors import ConfigError, UserError
from shoal.models.reference import Reference
from shoal.spelling import suggestion


def section_of(sections: Sequence[ModelSection], reference: str) -> ModelSection | None:
    """The one that is called like the model, be it by a name or by a reference of the same meaning; None: there is none.

    reference: what `--model` takes. Raises ConfigError if several are.
    """
    found = [section for section in sections if _same(section.name, reference)]
    if len(found) > 1:
        raise ConfigError(f"{found[1].where}: the model {reference} has a section already: {found[0].where}")
    return found[0] if found else None


def unserved(sections: Sequence[ModelSection], references: Sequence[str]) -> list[str]:
    """What to say of sections that are about none of these models, each in a line."""
    idle = [section for section in sections if not any(_same(section.name, reference) for reference in references)]
    return [f"{section.where} is about a model that --model does not name{suggestion(section.name, references)}" for section in idle]


def _same(name: str, reference: str) -> bool:
    """name: of a section."""
    if name == reference:
        return True
    model = _parsed(reference)
    return model is not None and (name == model.title or _parsed(name) == model)


def _parsed(text: str) -> Reference | None:
    """None: it means nothing on this machine."""
    try:
        return Reference.parse(text)
    except UserError:
        return None
