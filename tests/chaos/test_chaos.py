"""The short form of the chaos: the command itself, with a few cases, since it has processes and disks of its own."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.chaos.__main__ import not_happened
from tests.chaos.case import KINDS, draw
from tests.chaos.round import Counts

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_in_bad_weather_every_word_is_true() -> None:
    command = ["-m", "tests.chaos", "--seed", "7", "--cases", "24", "--lanes", "8"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 0, said
    for word in ("push", "pull"):
        done, error, killed = map(int, re.findall(rf"\| {word} \| \d+ \| (\d+) \| (\d+) \| (\d+) \|", said)[0])
        assert done > 10, said
        assert error + killed > 5, said
    for happened in ("client killed", "registry killed", "reset", "tries after the first"):
        assert f"| {happened} |" in said


def test_a_case_is_drawn_from_the_seed_and_its_number_alone() -> None:
    assert draw(7, 3) == draw(7, 3)
    assert len({draw(seed, number) for seed in range(3) for number in range(10)}) == 30


def test_what_befalls_a_request_does_not_hang_on_when_it_comes() -> None:
    weather = draw(7, 0).pushes[0].weather

    def befalls(step: str, nth: int) -> str | None:
        return weather.draw(weather.first, step, nth)[0]

    steps = [(f"PUT {number}", nth) for number in range(20) for nth in range(3)]
    forwards = {step: befalls(*step) for step in steps}
    backwards = {step: befalls(*step) for step in reversed(steps)}

    assert forwards == backwards


def test_a_long_run_in_which_something_never_happened_says_what() -> None:
    missing = not_happened(Counts(), own_disks=True)

    assert {*KINDS, "client killed", "registry's disk full", "push: resumed", "pull killed"} <= {*missing}
