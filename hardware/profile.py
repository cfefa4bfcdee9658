"""Published figures of the devices that the suite knows: one TOML file per device in ``profiles/``."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType

PROFILES = Path(__file__).parent / "profiles"


class UnknownDeviceError(ValueError):
    """A device that no profile names."""


@dataclass(frozen=True)
class Published:
    """Figures from a vendor's data sheet; dense, no sparsity."""

    source: str
    retrieved: date
    figures: Mapping[str, float]  # the unit ends each name: bf16_tflops, hbm_bytes, hbm_gb_per_s


@dataclass(frozen=True)
class Profile:
    """What is known about a device by its name."""

    name: str  # the file's stem
    device_names: tuple[str, ...]
    published: Published | None  # None: no data sheet covers every device of this name


def known_profiles() -> tuple[Profile, ...]:
    """Read every profile, ordered by name.

    Raises:
        ValueError: a profile without device names, or figures without a source and a date.
    """
    return tuple(_read(path) for path in sorted(PROFILES.glob("*.toml")))


def profile_for(device_name: str) -> Profile:
    """Find the profile that names this device exactly; a similar name is another device.

    Args:
        device_name: as NVML or macOS spells it ("NVIDIA H200"), or "cpu".

    Raises:
        UnknownDeviceError: no profile names it; the message lists those that exist and how to add one.
    """
    profiles = known_profiles()
    for profile in profiles:
        if device_name in profile.device_names:
            return profile
    known = ", ".join(repr(name) for profile in profiles for name in profile.device_names)
    raise UnknownDeviceError(
        f"device: {device_name!r} has no profile; known: {known}; "
        "to add one, write hardware/profiles/NAME.toml with its device_names and its published figures, "
        "their source and the date you read them"
    )


def _read(path: Path) -> Profile:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    if not values.get("device_names"):
        raise ValueError(f"{path.name}: device_names is missing; want the exact names, as the driver spells them")
    published = values.get("published")
    return Profile(path.stem, tuple(values["device_names"]), published and _published(path.name, dict(published)))


def _published(where: str, values: dict) -> Published:
    source, retrieved = values.pop("source", None), values.pop("retrieved", None)
    if not source or not isinstance(retrieved, date):
        raise ValueError(f"{where}: published figures lack source or retrieved; want a URL and a date (2026-08-24)")
    return Published(source, retrieved, MappingProxyType(values))
