"""Sizes, durations and names, formatted for people."""

from __future__ import annotations

import pytest

from async_bento._core.text import human_size, human_time, shorten


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**40, "1.0 TiB"),
        (3000 * 2**40, "3000.0 TiB"),
    ],
)
def test_human_size_is_binary(count: int, text: str) -> None:
    assert human_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3780, "1 h 03 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_human_time_uses_two_units(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


def test_shorten_replaces_middle() -> None:
    assert shorten("pushing bento iris:v1", 21) == "pushing bento iris:v1"
    assert shorten("pushing bento iris:v1", 11) == "pushi…is:v1"
    assert shorten("pushing bento iris:v1", 12) == "pushin…is:v1"
