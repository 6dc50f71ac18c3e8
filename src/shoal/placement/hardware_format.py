"""Hardware profiles as text: what a TOML or JSON file may say, and its conversion. Reading files is not this module's work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from shoal.config import parse_bytes
from shoal.errors import ConfigError
from shoal.placement.hardware import Curve, Device, Hardware, Tier, TierLink

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


class _Device(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    tier: str
    bytes_per_second: Above
    flops: dict[str, list[tuple[Above, Above]]]
    layer_seconds: AtLeastZero = 0.0


class _Hardware(msgspec.Struct, forbid_unknown_fields=True):
    source: str
    """Where the numbers come from: for people."""
    tiers: list[_Tier]
    devices: list[_Device]
    links: list[_Link] = []


def parse(name: str, values: Mapping[str, Any]) -> Hardware:
    """A profile from the values of its file. Raises ConfigError, which names the field."""
    try:
        found = msgspec.convert(values, _Hardware)
        tiers = tuple(Tier(tier.name, parse_bytes(tier.size)) for tier in found.tiers)
        names = [tier.name for tier in tiers]
        return Hardware(
            name,
            tiers,
            tuple(TierLink(link.name, link.bytes_per_second, link.seconds, link.copies) for link in found.links),
            tuple(_device(device, names) for device in found.devices),
        )
    except (msgspec.ValidationError, ValueError) as fault:
        raise ConfigError(f"the hardware profile '{name}': {fault}") from fault
    except ConfigError as fault:
        raise ConfigError(f"the hardware profile '{name}': {fault}") from fault


def _device(device: _Device, tiers: list[str]) -> Device:
    if device.tier not in tiers:
        raise ValueError(f"the device '{device.name}' computes from '{device.tier}', which is none of the tiers {', '.join(tiers)}")
    curves = tuple(
        (kind, Curve(tuple(rows for rows, _ in points), tuple(speed for _, speed in points))) for kind, points in device.flops.items()
    )
    return Device(device.name, tiers.index(device.tier), device.bytes_per_second, curves, device.layer_seconds)
