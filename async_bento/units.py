"""Sizes, durations and names, as a person reads them."""

from __future__ import annotations

from async_bento.config import KiB

_MINUTE = 60
_HOUR = 60 * _MINUTE


def human_size(count: float) -> str:
    """Write a size as a person reads it.

    Args:
        count: Bytes.

    Returns:
        Like `1.5 MiB`.
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < KiB:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= KiB
    return f"{count:.1f} TiB"


def human_time(seconds: float) -> str:
    """Write a duration as a person reads it.

    Args:
        seconds: How long.

    Returns:
        Like `4 s`, `2 min 05 s` or `1 h 03 min`.
    """
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"


def shorten(name: str, room: int) -> str:
    """Cut the middle out of a name that is too long.

    Args:
        name: The name.
        room: Characters there are.

    Returns:
        The name, with an ellipsis where something is missing.
    """
    if len(name) <= room:
        return name
    tail = (room - 1) // 2
    return f"{name[: room - 1 - tail]}…{name[len(name) - tail :]}"
