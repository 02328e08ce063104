"""After a kill of async-bento's pull at any step, bentoml finds the old item or the new one in the store."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shutil

import pytest

from tests.builders import KiB, make_bento, random_bytes
from tests.interop.homes import Home

pytestmark = pytest.mark.interop

EVERY = int(os.environ.get("CRASH_EVERY", "2"))


def digests(path):
    """Return the digests of the files of an item, in the form of the driver."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("force", [False, True])
def test_killed_pull_is_atomic(crasher, tmp_path, home, force):
    new = make_bento(home, built="2024-01-03 00:00:00", files={"new": b"new", "src/noise": random_bytes(150 * KiB)})
    crasher.run("push", home)
    begin = tmp_path / "begin"
    before = {"v0": digests(make_bento(begin, "svc:v0", built="2024-01-01 00:00:00"))}
    after = before | {"v1": digests(new)}
    if force:
        before |= {"v1": digests(make_bento(begin, built="2024-01-02 00:00:00", files={"old": b"old"}))}
    (begin / "bentos" / "svc" / "latest").write_text(max(before))

    homes = []
    for step in itertools.count(1, EVERY):
        homes.append(tmp_path / f"at-{step}")
        shutil.copytree(begin, homes[-1])
        if crasher.run("pull", homes[-1], at=step, force=force) is not None:
            break
    calls = [["see", {"homes": [str(path) for path in homes], "name": "svc"}]]
    (found,) = asyncio.run(Home(tmp_path).try_calls(*calls))

    assert "error" not in found, found
    assert [one["items"] for one in found] == sorted((one["items"] for one in found), key=[before, after].index)
    assert found[0]["items"] == before
    assert found[-1] == {"latest": "v1", "items": after}
    assert all(one["latest"] in one["items"] for one in found)
    assert len(homes) * EVERY > 60
