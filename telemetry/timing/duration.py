"""Durations as people write them: ``250ms``, ``90s``, ``10m``, ``2h``, ``30d``, ``4w``."""

import re
from collections.abc import Collection

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def parse_duration(text: str, units: Collection[str]) -> float | None:
    """Seconds; None if ``text`` is not a number followed by one of ``units``."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-z]+)", text)
    return float(found[1]) * _UNITS[found[2]] if found and found[2] in units else None


def length(ms: float) -> str:
    """A duration in milliseconds, as people read it."""
    if ms >= 1000:
        return f"{ms / 1000:.2f}".rstrip("0").rstrip(".") + " s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"
