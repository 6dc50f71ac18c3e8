"""Hardware profiles as text: what a TOML or JSON file may say, and its conversion. Reading files is not this module's work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec

from shoal.errors import ConfigError
from shoal.placement.hardware import Curve, Device, Hardware, Tier, TierLink
from shoal.settings import parse_bytes

Above = Annotated[float, msgspec.Meta(gt=0)]
AtLeastZero = Annotated[float, msgspec.Meta(ge=0)]


class _Tier(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    size: str


class _Link(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    bytes_per_second: Above
    seconds: AtLeastZero = 0.0
    copies: AtLeastZero = 0.0
    read_seconds: AtLeastZero = 0.0


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    tier: str
    bytes_per_second: Above
    flops: dict[str, list[tuple[Above, Above]]]
    layer_seconds: AtLeastZero = 0.0
    chosen_seconds: AtLeastZero = 0.0
    reading: dict[str, list[tuple[Above, Above]]] = {}


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and how a profile was measured by `shoal doctor --measure`."""

    machine: str
    """Its name in its network."""
    processor: str
    instruction_set: str
    threads: int
    folder: str
    """Whose disk it was."""
    on: str
    """The day: 2026-01-31."""


class _Hardware(msgspec.Struct, forbid_unknown_fields=True):
    source: str
    """Where the numbers come from: for people."""
    tiers: list[_Tier]
    devices: list[_Device]
    links: list[_Link] = []
    measured: Measured | None = None


def parse(name: str, values: Mapping[str, Any]) -> Hardware:
    """A profile from the values of its file. Raises ConfigError, which names the field."""
    try:
        found = msgspec.convert(values, _Hardware)
        tiers = tuple(Tier(tier.name, parse_bytes(tier.size)) for tier in found.tiers)
        names = [tier.name for tier in tiers]
        return Hardware(
            name,
            tiers,
            tuple(TierLink(link.name, link.bytes_per_second, link.seconds, link.copies, link.read_seconds) for link in found.links),
            tuple(_device(device, names) for device in found.devices),
        )
    except (msgspec.ValidationError, ValueError) as fault:
        raise ConfigError(f"the hardware profile '{name}': {fault}") from fault
    except ConfigError as fault:
        raise ConfigError(f"the hardware profile '{name}': {fault}") from fault


def _device(device: _Device, tiers: list[str]) -> Device:
    if device.tier not in tiers:
        raise ValueError(f"the device '{device.name}' computes from '{device.tier}', which is none of the tiers {', '.join(tiers)}")
    return Device(
        device.name,
        tiers.index(device.tier),
        device.bytes_per_second,
        _curves(device.flops),
        device.layer_seconds,
        device.chosen_seconds,
        _curves(device.reading),
    )


def _curves(tables: Mapping[str, list[tuple[float, float]]]) -> tuple[tuple[str, Curve], ...]:
    return tuple((kind, Curve(tuple(rows for rows, _ in points), tuple(speed for _, speed in points))) for kind, points in tables.items())


def measured(name: str, values: Mapping[str, Any]) -> Measured | None:
    """Where a profile was measured; None if that is not said. Raises ConfigError."""
    try:
        return msgspec.convert(values.get("measured"), Measured | None)
    except msgspec.ValidationError as fault:
        raise ConfigError(f"the hardware profile '{name}': {fault}") from fault


def written(values: Mapping[str, Any]) -> str:
    """A profile's values as TOML, a line for each. values: of the form that `parse` takes."""
    found, about = msgspec.convert(values, _Hardware), values.get("measured")
    lines = [f"source = {_toml(found.source)}", ""]
    if about:
        lines += ["[measured]", *_lines(about), ""]
    for name, tables in (("tiers", found.tiers), ("links", found.links), ("devices", found.devices)):
        for table in tables:
            fields: dict[str, Any] = msgspec.structs.asdict(table)
            lines += [f"[[{name}]]", *_lines({key: value for key, value in fields.items() if not isinstance(value, dict)}), ""]
            for key, value in fields.items():
                if isinstance(value, dict) and value:
                    lines += [f"[{name}.{key}]", *_lines(cast("dict[str, Any]", value)), ""]
    return "\n".join(lines)


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in values.items()]


def _toml(value: Any) -> str:
    """Of strings, numbers and lists: as in JSON, whose escapes TOML has, too."""
    return msgspec.json.encode(value).decode()
