"""Settings as the words of a command."""

from __future__ import annotations

import enum

from shoal.settings import Settings, settings_of, values_of


def flags_of(settings: Settings) -> list[str]:
    """Flags that give these settings to a command of their role, without those that are defaults."""
    values, words = values_of(settings), list[str]()
    for setting in settings_of(type(settings)):
        if (value := values[setting.name]) == setting.default:
            continue
        flag = setting.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag}={value.value if isinstance(value, enum.Enum) else value}")
    return words
