"""After a kill at any step, the store has the old item or the new one, and the next call removes the leftovers.

Each test kills a process at its first step, another one at its second step, and so on until a process survives.
"""

from __future__ import annotations

import itertools
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoStore
from tests.builders import KiB, MiB, left_in_scratch, make_bento, random_bytes
from tests.store.crashes import seen, whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.store.crashes import Crasher

pytestmark = pytest.mark.long

EVERY = os.environ.get("CRASH_EVERY")
"""`CRASH_EVERY=1` tests every step and takes minutes; the default tests the steps of the commit, and some before."""

COMMIT = 40
"""The last steps of a pull, which include those of the commit."""

OLDEST, OLD, NEW = (f"2024-01-0{day} 00:00:00" for day in (1, 2, 3))


def make_new(home: Path) -> Path:
    """Make a bento with subdirectories, modes, links, and a file of several ranges."""
    new = make_bento(
        home, built=NEW, files={"src/service.py": b"new", "src/data/noise": random_bytes(150 * KiB), "run": b"#!"}
    )
    (new / "run").chmod(0o755)
    (new / "src" / "link").symlink_to("service.py")
    (new / "empty").mkdir()
    return new


def steps(homes: Path, total: object, every: int, last: int) -> Iterator[tuple[int, Path]]:
    """Yield the steps at which to kill, without end, each with a home that is removed before the next step."""
    assert isinstance(total, int)
    for step in itertools.count(1):
        if step % int(EVERY or every) == 0 or step > total - last:
            yield step, homes / f"at-{step}"
            shutil.rmtree(homes / f"at-{step}")


def leftovers(home: Path) -> list[str]:
    """List the entries of a home other than the items of `svc`, `latest`, and locks."""
    there = [*home.glob("*"), *home.glob("bentos/*"), *home.glob("bentos/svc/*")]
    expected = {"tmp", "bentos", "bentos/svc", "bentos/svc/latest", "bentos/svc/v0", "bentos/svc/v1"}
    return [*{str(path.relative_to(home)) for path in there} - expected, *left_in_scratch(home)]


def recover(home: Path) -> None:
    """Recover as the next call on the store does."""
    with BentoStore(home / "bentos").stage():
        pass


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scene", ["first", "forced", "forced without exchange"])
def test_pull_crash_keeps_whole_item(crasher: Crasher, tmp_path: Path, home: Path, scene: str) -> None:
    new = whole(make_new(home))
    crasher.run("push", home)
    begin = tmp_path / "begin"
    oldest = {"v0": whole(make_bento(begin, "svc:v0", built=OLDEST))}
    before, options = oldest, {"force": scene != "first", "exchange": "without" not in scene}
    if options["force"]:
        old = make_bento(begin, built=OLD, files={"src/service.py": b"old", "src/old": b"only the old one has it"})
        before = oldest | {"v1": whole(old)}
    (begin / "bentos" / "svc" / "latest").write_text(max(before))
    after = oldest | {"v1": new}

    total = crasher.run("pull", shutil.copytree(begin, tmp_path / "counted"), **options)
    for step, at in steps(tmp_path, total, every=5, last=COMMIT):
        shutil.copytree(begin, at)
        survived = crasher.run("pull", at, at=step, **options) is not None
        if not options["exchange"]:
            recover(at)  # between the two renames the item is missing until the next recovery
        latest, items = seen(at)
        assert items in (before, after), step
        assert latest in items or latest is None, step

        crasher.run("pull", at, **options)
        recover(at)  # the pull of a local item may not stage anything
        assert BentoStore(at / "bentos").get("svc").tag.version == "v1", step
        assert seen(at) == ("v1", after), step
        assert leftovers(at) == [], step
        if survived:
            break
    assert step > 60


@pytest.mark.timeout(300)
def test_push_crash_is_recovered(crasher: Crasher, tmp_path: Path, home: Path) -> None:
    """A push changes the registry, so each message to the registry is a step, too."""
    begin = tmp_path / "begin"
    sent = whole(make_bento(begin, files={"src/large": random_bytes(6 * MiB), "src/service.py": b"pass"}))

    total = crasher.run("push", begin)
    for step, at in steps(tmp_path, total, every=12, last=0):
        shutil.copytree(begin, at)
        survived = crasher.run("push", at, at=step, force=True) is not None
        assert seen(at)[1] == {"v1": sent}, step

        crasher.run("push", at)
        recover(at)
        assert seen(at)[1] == {"v1": sent}, step
        assert left_in_scratch(at) == [], step
        crasher.run("pull", home, force=True)
        assert seen(home) == ("v1", {"v1": sent}), step
        if survived:
            break
    assert step > 60
