"""A short chaos run by its command, which needs its own processes and disks."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.chaos.__main__ import not_happened
from tests.chaos.case import KINDS, draw, draw_copies
from tests.chaos.items import Counts

ROOT = Path(__file__).parents[2]


RUNS = {
    "all": (
        ["--cases", "24"],
        ("push", "pull"),
        ("client killed", "registry killed", "reset", "retries"),
    ),
    "copies": (
        ["--copies", "--seed", "8", "--cases", "16"],
        ("copy",),
        ("client killed", "reset", "retries"),
    ),
}


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("run", RUNS)
async def test_run_verifies_all_results(run: str) -> None:
    options, ways, events = RUNS[run]
    command = ["-m", "tests.chaos", "--seed", "7", "--lanes", "8", *options]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 0, output
    for way in ways:
        done, error, killed = map(int, re.findall(rf"\| {way} \| \d+ \| (\d+) \| (\d+) \| (\d+) \|", output)[0])
        assert done > 5, output
        assert error + killed > 5, output
    for event in events:
        assert f"| {event} |" in output


def test_case_depends_on_seed_and_number() -> None:
    assert draw(7, 3) == draw(7, 3)
    assert draw_copies(7, 3) == draw_copies(7, 3)
    assert len({draw(seed, number) for seed in range(3) for number in range(10)}) == 30
    assert all(draw_copies(7, number).copy for number in range(10))


def test_faults_ignore_request_order() -> None:
    weather = draw(7, 0).pushes[0].weather

    def befalls(step: str, nth: int) -> str | None:
        return weather.draw(weather.first, step, nth)[0]

    steps = [(f"PUT {number}", nth) for number in range(20) for nth in range(3)]
    forwards = {step: befalls(*step) for step in steps}
    backwards = {step: befalls(*step) for step in reversed(steps)}

    assert forwards == backwards


def test_run_reports_missing_events() -> None:
    missing = not_happened(Counts(), own_disks=True)

    assert {*KINDS, "client killed", "registry's disk full", "push: resumed", "pull killed"} <= {*missing}
    assert {"target killed", "target's disk full", "copy: resumed", "copy interrupted"} <= {*missing}
    assert "push: resumed" not in not_happened(Counts(), ["copy"], own_disks=True)
