"""Pulls to full and read-only disks, to long paths, and to filesystems without locks, links or exchange."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI, BentoStore, StoreError
from tests.builders import KiB, contents, left_in_scratch, make_bento, random_bytes
from tests.store.crashes import seen, whole
from tests.store.real_places import refuse_locks

if TYPE_CHECKING:
    from tests.store.crashes import Crasher

pytestmark = pytest.mark.long

EVERY = int(os.environ.get("CRASH_EVERY", "4"))


@pytest.fixture
def there(tmp_path, home, served) -> Path:
    """Make a home with an old `svc:v1`; the registry has a newer one."""
    new = make_bento(
        home, files={"src/service.py": b"new", "noise": random_bytes(150 * KiB)}, built="2024-01-02 00:00:00"
    )
    (new / "src" / "same.py").hardlink_to(new / "src" / "service.py")
    (new / "src" / "service_of_a_long_name").touch()
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    there = tmp_path / "there"
    make_bento(there, files={"old": b"old"}, built="2024-01-01 00:00:00")
    (there / "bentos" / "svc" / "latest").write_text("v1")
    return there


def pull(home: Path):
    with BentoAPI(progress=False, bento_store=BentoStore(home / "bentos")) as api:
        return api.pull("svc:v1", force=True)


# A full disk, a read-only one


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_disk_error_keeps_store_whole(crasher: Crasher, there, home, tmp_path, number):
    old, new = whole(there / "bentos" / "svc" / "v1"), whole(home / "bentos" / "svc" / "v1")
    for step in itertools.count(1, EVERY):
        at = tmp_path / f"at-{step}"
        shutil.copytree(there, at)
        outcome = crasher.run("pull", at, at=step, force=True, error=number)
        if outcome is None or isinstance(outcome, int):
            assert seen(at) == ("v1", {"v1": new}), step
        else:
            assert outcome.startswith("StoreError: cannot pull svc:v1: "), outcome
            assert os.strerror(number) in outcome, outcome
            assert seen(at) in [("v1", {"v1": old}), ("v1", {"v1": new})], outcome
            assert number == errno.EROFS or left_in_scratch(at) == [], outcome
        crasher.run("pull", at, force=True)
        assert seen(at) == ("v1", {"v1": new}), outcome
        assert left_in_scratch(at) == [], outcome
        shutil.rmtree(at)
        if isinstance(outcome, int):
            break
    assert step > 40


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_disk_error_names_store(crasher: Crasher, there, number):
    outcome = crasher.run("pull", there, at=1, force=True, error=number)
    assert str(outcome).startswith(
        f"StoreError: cannot pull svc:v1: cannot write to {there / 'bentos'}: {os.strerror(number)}: "
    )


# Long paths


def deep(home: Path, length: int) -> Path:
    """Return a home whose path has `length` bytes."""
    while length - len(os.fsencode(home)) > 255:
        home /= "d" * 200
    return home / ("d" * (length - len(os.fsencode(home)) - 1))


def test_long_member_path_is_named(there, tmp_path):
    longest_that_fits = "/tmp/async-bento-kept-bentos+svc+v1/item/src/service.py"
    home = deep(tmp_path, 4095 - len(longest_that_fits))
    with pytest.raises(
        StoreError, match=r"cannot pull svc:v1: cannot write src/service_of_a_long.*: File name too long"
    ):
        pull(home)
    assert left_in_scratch(home) == []
    assert list((home / "bentos").iterdir()) == []


def test_long_store_path_is_named(there, tmp_path):
    home = deep(tmp_path, 4096 - len("/tmp"))
    with pytest.raises(StoreError, match=r"cannot pull svc:v1: cannot write to /.*/.*: File name too long"):
        pull(home)


# Filesystems that lack a feature


@pytest.fixture
def warned(caplog):
    caplog.set_level(logging.WARNING, logger="async_bento.store")
    return lambda: [record.getMessage() for record in caplog.records if "cannot lock files" in record.getMessage()]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_unsupported_locks_warn_once(there, home, monkeypatch, warned, number):
    refuse_locks(monkeypatch, number)
    store = BentoStore(there / "bentos")
    for _ in range(2):
        assert contents(pull(there).path) == contents(home / "bentos" / "svc" / "v1")
    (there / "bentos" / "svc" / "latest").unlink()
    assert store.get("svc").tag.version == "v1"
    store.delete("svc:v1")
    assert not (there / "bentos" / "svc").exists()
    assert left_in_scratch(there) == []
    assert len(warned()) == 1
    assert f"in {there / 'tmp'}: {os.strerror(number)}. Let only one process at a time" in warned()[0]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_pull_without_links_and_locks(there, home, monkeypatch, number):
    def refuse(self, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setattr("async_bento._core.platform.exchange", lambda *_: False)
    refuse_locks(monkeypatch, errno.ENOTSUP)
    pulled = pull(there).path
    assert contents(pulled) == contents(home / "bentos" / "svc" / "v1")
    assert (pulled / "src" / "same.py").stat().st_nlink == 1
    assert left_in_scratch(there) == []
