"""Figures of the devices that the suite knows: one TOML file per device in ``profiles/``."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

PROFILES = Path(__file__).parent / "profiles"

Kind = Literal["published", "measured"]


class UnknownDeviceError(ValueError):
    """A device that no profile names."""


@dataclass(frozen=True)
class Figure:
    """One number, and where it is from.

    Attributes:
        value: dense, no sparsity; the unit ends the figure's name.
        kind: "published" by the vendor, or "measured" by somebody.
        source: whose number it is; a URL, or for our own a command and a commit.
        retrieved: when it was read, or measured.
        read_at: where it was read, if the source itself could not be opened.
    """

    value: float
    kind: Kind
    source: str
    retrieved: date
    read_at: str | None

    def __str__(self) -> str:
        through = f", not opened; read at {self.read_at}" if self.read_at else ""
        return f"{self.value:,.0f} [{self.kind}: {self.source}{through}, {self.retrieved}]"


@dataclass(frozen=True)
class Profile:
    """What is known about a device by its name.

    Attributes:
        name: the file's stem.
        device_names: as the driver spells them, exactly.
        also_called: short names for a command line.
        unified: CPU and GPU share the memory.
        notes: what a reader of the figures must know.
    """

    name: str
    device_names: tuple[str, ...]
    also_called: tuple[str, ...]
    unified: bool
    published: Mapping[str, Figure]
    measured: Mapping[str, Figure]
    notes: tuple[str, ...]

    def figure(self, name: str, kind: Kind) -> Figure:
        """Give one figure.

        Raises:
            ValueError: the profile has none of this name and kind; the message says which it has.
        """
        figures = self.measured if kind == "measured" else self.published
        if name not in figures:
            known = ", ".join(sorted(figures)) or "none"
            raise ValueError(
                f"{self.name}: has no {kind} {name}; known: {known}; "
                f"add it to hardware/profiles/{self.name}.toml with its source and date"
            )
        return figures[name]


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
    raise UnknownDeviceError(f"device: {device_name!r} has no profile; known: {known}; {HOW_TO_ADD}")


def profile_called(name: str) -> Profile:
    """Find a profile by what a command line calls it: its file's stem, a short name, or the device's own name.

    Raises:
        UnknownDeviceError: none is called so; the message lists them all and how to add one.
    """
    profiles = known_profiles()
    for profile in profiles:
        if name in (profile.name, *profile.also_called, *profile.device_names):
            return profile
    known = ", ".join(f"{profile.name} ({', '.join(profile.also_called)})" for profile in profiles)
    raise UnknownDeviceError(f"hardware: {name!r} has no profile; known: {known}; {HOW_TO_ADD}")


HOW_TO_ADD = (
    "to add one, write hardware/profiles/NAME.toml with its device_names and its published figures, "
    "their source and the date you read them"
)


def _read(path: Path) -> Profile:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    if not values.get("device_names"):
        raise ValueError(f"{path.name}: device_names is missing; want the exact names, as the driver spells them")
    return Profile(
        name=path.stem,
        device_names=tuple(values["device_names"]),
        also_called=tuple(values.get("also_called", ())),
        unified=values.get("unified", False),
        published=_figures(path.name, values.get("published", ()), "published"),
        measured=_figures(path.name, values.get("measured", ()), "measured"),
        notes=tuple(values.get("notes", ())),
    )


def _figures(where: str, groups: Sequence[Mapping[str, Any]], kind: Kind) -> Mapping[str, Figure]:
    """Figures of all groups; each group has one source, and a figure stands once."""
    figures: dict[str, Figure] = {}
    for group in groups:
        values = dict(group)
        source, retrieved = values.pop("source", None), values.pop("retrieved", None)
        read_at = values.pop("read_at", None)
        if not source or not isinstance(retrieved, date):
            raise ValueError(f"{where}: {kind} figures lack source or retrieved; want a URL and a date (2026-08-24)")
        for name, value in values.items():
            if name in figures:
                raise ValueError(f"{where}: {name} is {kind} twice; want one figure, with the source you trust")
            figures[name] = Figure(value, kind, source, retrieved, read_at)
    return MappingProxyType(figures)
