"""The short form of the chaos: the command itself, with a few cases, since it has processes and disks of its own."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
