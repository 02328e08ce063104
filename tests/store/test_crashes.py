"""A process may be killed at any instant: the store has the old item or the new one, and nothing is left for ever.

Each test kills a process at its first step, another at its second, and so on until one survives.
"""

from __future__ import annotations

import itertools
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoStore
from tests.builders import KiB, MiB, left_in_scratch, make_bento, noise
from tests.store.crashes import seen, whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.store.crashes import Crasher

pytestmark = pytest.mark.long

EVERY = os.environ.get("CRASH_EVERY")
"""`CRASH_EVERY=1` takes all steps, in minutes; for every day the commit's will do, and some of those before."""

COMMIT = 40
"""Steps from before the commit to the end, at least."""

OLDEST, OLD, NEW = (f"2024-01-0{day} 00:00:00" for day in (1, 2, 3))


def make_new(home: Path) -> Path:
    """A bento with what a bento may have: sub-directories, modes, links, and a file that comes in several pieces."""
    new = make_bento(
        home, built=NEW, files={"src/service.py": b"new", "src/data/noise": noise(150 * KiB), "run": b"#!"}
    )
    (new / "run").chmod(0o755)
    (new / "src" / "link").symlink_to("service.py")
    (new / "empty").mkdir(mode=0o700)
    return new


def steps(homes: Path, total: object, every: int, last: int) -> Iterator[tuple[int, Path]]:
    """Steps to be killed at, without end, and for each a home that is gone when the next one comes."""
    assert isinstance(total, int)
    for step in itertools.count(1):
        if step % int(EVERY or every) == 0 or step > total - last:
            yield step, homes / f"at-{step}"
            shutil.rmtree(homes / f"at-{step}")


def leftovers(home: Path) -> list[str]:
    """What lies in a home but for the items of `svc`, its `latest`, and locks."""
    there = [*home.glob("*"), *home.glob("bentos/*"), *home.glob("bentos/svc/*")]
    expected = {"tmp", "bentos", "bentos/svc", "bentos/svc/latest", "bentos/svc/v0", "bentos/svc/v1"}
    return [*{str(path.relative_to(home)) for path in there} - expected, *left_in_scratch(home)]


def sweep(home: Path) -> None:
    """Be whoever comes next."""
    with BentoStore(home / "bentos").stage():
        pass


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scene", ["first", "forced", "forced without exchange"])
def test_crash_in_pull_commit_leaves_old_or_new_item(crasher: Crasher, tmp_path: Path, home: Path, scene: str) -> None:
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
            sweep(at)  # between its two renames there is nothing, until someone comes
        latest, items = seen(at)
        assert items in (before, after), step
        assert latest in items or latest is None, step

        crasher.run("pull", at, **options)
        sweep(at)  # a pull of what is here already has no use for scratch
        assert BentoStore(at / "bentos").get("svc").tag.version == "v1", step
        assert seen(at) == ("v1", after), step
        assert leftovers(at) == [], step
        if survived:
            break
    assert step > 60


@pytest.mark.timeout(300)
def test_crash_in_push_is_recovered_by_next(crasher: Crasher, tmp_path: Path, home: Path) -> None:
    """What a push changes is the registry, so each message to it is a step as well."""
    begin = tmp_path / "begin"
    sent = whole(make_bento(begin, files={"src/large": noise(6 * MiB), "src/service.py": b"pass"}))

    total = crasher.run("push", begin)
    for step, at in steps(tmp_path, total, every=12, last=0):
        shutil.copytree(begin, at)
        survived = crasher.run("push", at, at=step, force=True) is not None
        assert seen(at)[1] == {"v1": sent}, step

        crasher.run("push", at)
        sweep(at)
        assert seen(at)[1] == {"v1": sent}, step
        assert left_in_scratch(at) == [], step
        crasher.run("pull", home, force=True)
        assert seen(home) == ("v1", {"v1": sent}), step
        if survived:
            break
    assert step > 60
