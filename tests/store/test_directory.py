"""The target directory of a pull: replacements by a commit, and leftovers of killed pulls."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento import Bento, PathExistsError, StoreError, Tag
from async_bento._core import platform
from async_bento.store import directory as module
from async_bento.store.directory import TargetDirectory
from tests.builders import contents, make_bento
from tests.platforms import IS_WINDOWS

if TYPE_CHECKING:
    from collections.abc import Callable

TAG = Tag("svc", "v1")
NEW = {"data": b"new", "src/service.py": b"new"}


def fill(directory: Path, files: dict[str, bytes]) -> None:
    """Put a bento into a directory."""
    source = make_bento(directory.with_name(f"source-of-{directory.name}"), files=files)
    for entry in source.iterdir():
        entry.rename(directory / entry.name)


def names(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir() if not entry.name.startswith("source-of-")]


def pull(path: Path, *, force: bool = False) -> Bento:
    target = TargetDirectory(Bento, path)
    target.check(force=force)
    with target.stage() as staged:
        fill(staged, NEW)
        return target.commit(staged, TAG, force=force)


@pytest.fixture(params=[False, True], ids=["renamed", "filled in place"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that a rename replaces, or cannot replace, as with a mount."""
    if request.param:

        def refuse(probe: Path, directory: Path) -> bool:
            return False

        monkeypatch.setattr(module, "rename_reaches", refuse)
    path = tmp_path / "at" / "svc"
    path.mkdir(parents=True)
    return path


def test_commit_moves_item(path: Path) -> None:
    path.chmod(0o750)
    assert pull(path).path == path
    assert IS_WINDOWS or path.stat().st_mode & 0o777 == 0o750
    assert contents(path).keys() == {"bento.yaml", "data", "src", "src/service.py"}
    assert names(path.parent) == ["svc"]


@pytest.mark.posix("file modes")
def test_commit_changes_modes_of_directories(path: Path, request: pytest.FixtureRequest) -> None:
    """Nobody but root could move a directory without write permission elsewhere."""
    in_place = request.node.callspec.params["path"]
    if not in_place:
        path.rmdir()
    target = TargetDirectory(Bento, path)
    with target.stage() as staged:
        fill(staged, NEW)
        (staged / "data").chmod(0o400)
        for directory in (staged / "src", staged):
            directory.chmod(0o500)
        target.commit(staged, TAG, force=False)
    assert path.stat().st_mode & 0o700 == 0o700
    assert (path / "src").stat().st_mode & 0o777 == (0o700 if in_place else 0o500)
    assert (path / "data").stat().st_mode & 0o777 == 0o400


@pytest.mark.posix("sync of a directory")
def test_committed_item_is_synced(path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of the system after the commit does not lose the entries of the directory."""
    synced: list[tuple[Path, bool]] = []

    def note(at: Path) -> None:
        synced.append((at, (path / "bento.yaml").exists()))

    monkeypatch.setattr(module, "fsync_path", note)
    monkeypatch.setattr(module, "sync_tree", note)
    pull(path)
    is_in_place = request.node.callspec.params["path"]
    (staged, is_committed), *after = synced
    assert (staged.name, is_committed) == ("item", False)
    assert after == [(path if is_in_place else path.parent, True)]


def test_force_replaces_all_entries(path: Path) -> None:
    fill(path, {"old/data": b"old"})
    (path / "old").chmod(0o500)
    pull(path, force=True)
    assert contents(path).keys() == {"bento.yaml", "data", "src", "src/service.py"}


def test_force_without_exchange_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "exchange", lambda _first, _second: False)
    fill(path, {"old": b"old"})
    pull(path, force=True)
    assert contents(path).keys() == {"bento.yaml", "data", "src", "src/service.py"}
    assert names(path.parent) == ["svc"]


def test_failed_commit_rolls_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, {"old/data": b"old"})
    before = contents(path)
    rename, failed = Path.rename, False

    def refuse(self: Path, target: Path) -> Path:
        nonlocal failed
        if not failed and Path(target) in {path, path / "src"}:
            failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)

    monkeypatch.setattr(platform, "exchange", lambda _first, _second: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StoreError, match=f"cannot write svc:v1 to {re.escape(str(path))}: Input/output error"):
        pull(path, force=True)
    assert contents(path) == before


def killed(path: Path, monkeypatch: pytest.MonkeyPatch, at: Callable[[Path], bool], *, force: bool) -> None:
    """Run a pull in a child process that ends before a rename."""
    child = os.fork()
    if child == 0:
        rename = Path.rename

        def end(self: Path, target: Path) -> Path:
            if at(Path(target)):
                os._exit(0)
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", end)
        monkeypatch.setattr(platform, "exchange", lambda _first, _second: False)
        try:
            pull(path, force=force)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_killed_pull_counts_as_empty(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(path, monkeypatch, lambda target: target in {path, path / "data", path / "src"}, force=False)
    pull(path)
    assert contents(path).keys() == {"bento.yaml", "data", "src", "src/service.py"}
    assert names(path.parent) == ["svc"]


def test_killed_replace_needs_force(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, {"old": b"old"})
    killed(path, monkeypatch, lambda target: target in {path, path / "bento.yaml"}, force=True)
    assert not (path / "bento.yaml").exists()
    if path.exists():
        with pytest.raises(PathExistsError):
            pull(path)
    else:
        with TargetDirectory(Bento, path).stage():  # the staged item was complete
            assert contents(path).keys() == {"bento.yaml", "data", "src", "src/service.py"}
    pull(path, force=True)
    assert contents(path).keys() == {"bento.yaml", "data", "src", "src/service.py"}
    assert names(path.parent) == ["svc"]


def test_commit_of_other_tag_raises(path: Path) -> None:
    target = TargetDirectory(Bento, path)
    with target.stage() as staged:
        fill(staged, NEW)
        with pytest.raises(StoreError, match="the file describes svc:v1, not svc:v2"):
            target.commit(staged, Tag("svc", "v2"), force=False)
    assert contents(path) == {}
