"""Stores on mounts, shared by several users, and below read-only directories."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI, StoreError
from async_bento._core import platform
from async_bento.store import moves, places
from async_bento.store.store import BentoStore
from tests.builders import contents, make_bento
from tests.store.real_places import ALICE, BOB, TEAM, acting_as, mount, needs_root, outcome
from tests.store.stores import NEW, OLD, latest, put

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.registry import LocalRegistry

WITHIN = "async-bento:tmp"


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that every user can reach, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def version_of(store: BentoStore, tag: str, text: str = "", *, replace: bool = False) -> object:
    return outcome(lambda: put(store, tag, text=text, replace=replace).tag.version)


def owned(path: Path, user: int, group: int, mode: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, user, group)
    path.chmod(mode)
    return path


# Mounts


@pytest.mark.posix("colons in names")
def test_mount_commits_by_rename(store, monkeypatch):
    store.path.mkdir(parents=True)
    mount(monkeypatch, store.path, errno.EXDEV)
    assert version_of(store, "iris:v1") == "v1"
    assert version_of(store, "iris:v1", "new", replace=True) == "v1"
    assert (store.get("iris").path / "text").read_text() == "new"
    assert [item.tag.version for item in store.list()] == ["v1"]
    assert list((store.path / WITHIN).iterdir()) == []
    store.delete("iris:v1")
    assert [path.name for path in store.path.iterdir()] == [WITHIN]


@pytest.mark.posix("colons in names")
def test_resume_within_mounted_store(store, monkeypatch):
    def half() -> str:
        with store.stage(resume="iris:v1") as staged:
            (staged / "half").write_text("half")
            store.state_of(staged).write_text("half of it")
            raise ValueError("interrupted")

    store.path.mkdir(parents=True)
    mount(monkeypatch, store.path, errno.EXDEV)
    assert outcome(half) == "ValueError: interrupted"
    with BentoStore(store.path).stage(resume="iris:v1") as staged:
        assert staged.is_relative_to(store.path / WITHIN)
        assert (staged / "half").read_text() == "half"


def test_mounted_name_gets_copies(store, monkeypatch):
    put(store, "iris:v0", OLD)
    mount(monkeypatch, store.path / "iris", errno.EXDEV)
    assert version_of(store, "iris:v1") == "v1"
    assert version_of(store, "iris:v1", "new", replace=True) == "v1"
    assert (store.get("iris:v1").path / "text").read_text() == "new"
    assert latest(store) == "v1"
    assert sorted(path.name for path in (store.path / "iris").iterdir()) == ["latest", "v0", "v1"]
    assert outcome(lambda: store.delete("iris:v1")) is None
    assert latest(store) == "v0"


def test_failed_copy_keeps_old_item(store, monkeypatch):
    put(store, "iris:v1", text="old")
    mount(monkeypatch, store.path / "iris", errno.EXDEV)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfileobj", fail)
    found = version_of(store, "iris:v1", "new", replace=True)
    assert str(found).startswith(f"StoreError: cannot write iris:v1 to {store.path}: No space left on device")
    assert (store.get("iris:v1").path / "text").read_text() == "old"
    assert sorted(path.name for path in (store.path / "iris").iterdir()) == ["latest", "v1"]


def test_copy_to_mount_is_recorded_first(store, monkeypatch):
    """A copy that is cut short by a kill is removed by the recovery, which reads the record."""
    recorded = []

    def copy_tree(staged, copy):
        recorded.extend(moves.recorded_move(path) for path in (store.path.parent / "tmp").iterdir() if path.is_dir())
        make_copy(staged, copy)

    make_copy = moves.copy_tree
    put(store, "iris:v1")
    mount(monkeypatch, store.path / "iris", errno.EXDEV)
    monkeypatch.setattr(moves, "copy_tree", copy_tree)
    put(store, "iris:v2")
    (move,) = filter(None, recorded)
    assert (move.target, move.inode) == (str(store.path / "iris" / "v2"), 0)


def test_mount_without_colons_copies(store, monkeypatch):
    make = Path.mkdir

    def refuse_colons(path: Path, *arguments: object, **options: object) -> None:
        if ":" in path.name:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        make(path, *arguments, **options)

    store.path.mkdir(parents=True)
    mount(monkeypatch, store.path, errno.EXDEV)
    monkeypatch.setattr(Path, "mkdir", refuse_colons)
    assert version_of(store, "iris:v1") == "v1"
    assert version_of(store, "iris:v1", "new", replace=True) == "v1"
    assert (store.get("iris").path / "text").read_text() == "new"
    assert sorted(path.name for path in store.path.rglob("*") if path.name.startswith(".")) == []


# Parents that cannot be written


def test_read_only_parent_stages_inside(store, home, monkeypatch):
    store.path.mkdir(parents=True)
    make = Path.mkdir

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        if path.parent == home and not path.exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert version_of(store, "iris:v1") == "v1"
    assert version_of(store, "iris:v1", "new", replace=True) == "v1"
    assert outcome(lambda: store.delete("iris:v1")) is None


@pytest.mark.posix("sticky directories")
def test_sticky_tmp_is_not_used(store, home):
    """A store directly below `/` must not stage in `/tmp`, where the first user would lock out the others."""
    (home / "tmp").mkdir(parents=True)
    (home / "tmp").chmod(0o1777)
    (home / "tmp" / "async-bento-of-somebody-else").mkdir()
    assert version_of(store, "iris:v1") == "v1"
    assert [path.name for path in (home / "tmp").iterdir()] == ["async-bento-of-somebody-else"]


def test_read_only_store_fails_early(store, monkeypatch):
    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def stage() -> None:
        with store.stage():
            pytest.fail("nothing may be staged")

    store.path.mkdir(parents=True)
    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    assert str(outcome(stage)).startswith(f"StoreError: cannot write to {store.path}: Read-only file system")


@needs_root
def test_foreign_parent_stages_inside(shared):
    home = owned(shared / "home", 0, 0, 0o755)
    base = owned(home / "bentos", ALICE, ALICE, 0o755)
    with acting_as(ALICE, ALICE, 0o022):
        assert version_of(BentoStore(base), "iris:v1") == "v1"
    assert version_of(BentoStore(base), "iris:v2") == "v2"  # root uses the same locks
    assert [path.name for path in home.iterdir()] == ["bentos"]


# A directory elsewhere


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary" / f"bento-staging-{platform.user_id()}"


def test_stage_elsewhere_prefers_sibling(tmp_path, temporary):
    for _ in range(2):  # made by the first call
        assert places._elsewhere(tmp_path / "bentos") == tmp_path / "tmp"
    assert not temporary.exists()


@pytest.mark.posix("file modes")
@pytest.mark.parametrize("mode", [0o1777, 0o755])
def test_stage_elsewhere_in_temporary_directory(tmp_path, temporary, monkeypatch, mode):
    """The sibling is sticky, or another user's."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(mode)
    monkeypatch.setattr(places, "is_writable", lambda _: mode == 0o1777)
    for _ in range(2):
        assert places._elsewhere(tmp_path / "bentos") == temporary
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700


@pytest.mark.posix("file modes")
@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_stage_elsewhere_of_other_user_fails(tmp_path, temporary, monkeypatch, kind):
    monkeypatch.setattr(places, "is_writable", lambda _: False)
    if kind == "link":
        temporary.symlink_to(tmp_path, target_is_directory=True)
    elif kind == "file":
        temporary.touch(0o600)
    else:
        temporary.mkdir()
        temporary.chmod(0o720)
    with pytest.raises(StoreError, match=rf"cannot stage items in {temporary}: the directory is another user's"):
        places._elsewhere(tmp_path / "bentos")


@needs_root
def test_stage_elsewhere_of_bob_fails(tmp_path, temporary, monkeypatch):
    monkeypatch.setattr(places, "is_writable", lambda _: False)
    owned(temporary, BOB, BOB, 0o700)
    with pytest.raises(StoreError, match="another user's"):
        places._elsewhere(tmp_path / "bentos")


def test_probe_of_faster_process_may_be_gone(tmp_path, monkeypatch):
    """Another process with the same probe has removed it."""
    (tmp_path / "bentos").mkdir()
    monkeypatch.setattr(platform, "replace", lambda source, _target: source.unlink())
    assert places.rename_reaches(tmp_path / "probe", tmp_path / "bentos")
    assert [*tmp_path.iterdir()] == [tmp_path / "bentos"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EACCES])
def test_probe_of_mount_is_removed(tmp_path, monkeypatch, number):
    def refuse(_source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(platform, "replace", refuse)
    reached = outcome(lambda: places.rename_reaches(tmp_path / "probe", tmp_path / "bentos"))
    assert reached is False if number == errno.EXDEV else str(reached).startswith("PermissionError")
    assert [*tmp_path.iterdir()] == []


# Several users


@pytest.mark.posix("file modes")
@pytest.mark.parametrize(
    ("ours", "theirs", "shared"),
    [
        (0o755, None, True),  # no store yet
        (0o755, 0o755, True),
        (0o755, 0o775, False),
        (0o755, 0o777, False),
        (0o775, 0o775, True),
        (0o775, 0o777, False),
        (0o777, 0o777, True),
        (0o1777, 0o755, False),
        (0o1777, None, False),
    ],
)
def test_staging_is_shared_like_store(tmp_path, ours, theirs, shared):
    for name, mode in {"tmp": ours, "bentos": theirs}.items():
        if mode is not None:
            (tmp_path / name).mkdir()
            (tmp_path / name).chmod(mode)
    assert places._is_shared(tmp_path / "tmp", tmp_path / "bentos") is shared


@needs_root
@pytest.mark.parametrize(
    ("ours", "theirs", "shared"),
    [
        ((ALICE, TEAM, 0o755), (ALICE, ALICE, 0o755), True),
        ((ALICE, TEAM, 0o755), (BOB, TEAM, 0o755), False),
        ((ALICE, TEAM, 0o775), (BOB, TEAM, 0o775), True),
        ((ALICE, ALICE, 0o775), (ALICE, TEAM, 0o775), False),
        ((ALICE, ALICE, 0o777), (BOB, TEAM, 0o775), True),
    ],
)
def test_staging_is_shared_by_owners(tmp_path, ours, theirs, shared):
    owned(tmp_path / "tmp", *ours)
    owned(tmp_path / "bentos", *theirs)
    assert places._is_shared(tmp_path / "tmp", tmp_path / "bentos") is shared


@needs_root
def test_shared_store_umask_and_setgid(served: LocalRegistry, home, shared):
    bento = make_bento(home, files={"src/a.py": b"pass", "run.sh": b"#!"})
    (bento / "run.sh").chmod(0o700)
    (bento / "src").chmod(0o500)
    bento.chmod(0o700)
    base = owned(shared / "bentos", ALICE, TEAM, 0o2775)
    owned(shared, ALICE, ALICE, 0o755)
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    before = os.umask(0o002)
    try:
        with BentoAPI(progress=False, bento_store=BentoStore(base)) as api:
            pulled = api.pull("svc:v1").path
    finally:
        os.umask(before)
    found = {path.name: path.stat() for path in (pulled.parent, pulled, *pulled.rglob("*"), base / "svc" / "latest")}
    assert {name: oct(status.st_mode & 0o7777) for name, status in found.items()} == {
        "svc": "0o2775",
        "v1": "0o2775",
        "src": "0o2775",
        "a.py": "0o664",
        "bento.yaml": "0o664",
        "run.sh": "0o775",
        "latest": "0o664",
    }
    assert {status.st_gid for status in found.values()} == {TEAM}
    assert contents(pulled) == contents(bento)


@needs_root
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_shared_store_serves_group(shared, umask):
    owned(shared, 0, TEAM, 0o2775)
    base = owned(shared / "bentos", 0, TEAM, 0o2775)
    with acting_as(ALICE, TEAM, umask):
        assert version_of(BentoStore(base), "iris:v1") == "v1"
    with acting_as(BOB, TEAM, umask):
        assert version_of(BentoStore(base), "rose:v1") == "v1"
        if umask == 0o002:
            assert version_of(BentoStore(base), "iris:v1", "new", replace=True) == "v1"
            assert outcome(lambda: BentoStore(base).delete("iris:v1")) is None


@needs_root
def test_locks_exclude_other_users(shared):
    owned(shared, 0, TEAM, 0o2775)
    base = owned(shared / "bentos", 0, TEAM, 0o2775)
    with acting_as(ALICE, TEAM, 0o077):
        lock = BentoStore(base).lock("iris:v1")
        assert lock.acquire(timeout=0)
    with acting_as(BOB, TEAM, 0o077):
        assert outcome(lambda: BentoStore(base).lock("iris:v1").acquire(timeout=0)) is False
    with acting_as(ALICE, TEAM, 0o077):
        lock.release()


@needs_root
def test_root_use_keeps_store_usable(shared):
    owned(shared, ALICE, ALICE, 0o755)
    base = owned(shared / "bentos", ALICE, ALICE, 0o755)
    assert version_of(BentoStore(base), "iris:v1") == "v1"
    with acting_as(ALICE, ALICE, 0o022):
        assert version_of(BentoStore(base), "rose:v1") == "v1"


@needs_root
def test_resume_unaffected_by_other_user(shared):
    def interrupted() -> None:
        with BentoStore(base).stage(resume="iris:v1") as staged:
            BentoStore.state_of(staged).touch()
            raise ValueError("interrupted")

    owned(shared, 0, TEAM, 0o2775)
    base = owned(shared / "bentos", 0, TEAM, 0o2775)
    with acting_as(ALICE, TEAM, 0o022):
        assert outcome(interrupted) == "ValueError: interrupted"
    with acting_as(BOB, TEAM, 0o022):
        assert outcome(interrupted) == "ValueError: interrupted"


def test_refused_lock_file_warns(served: LocalRegistry, home, tmp_path, monkeypatch, caplog):
    make_bento(home)
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    opened = os.open

    def refuse(path: object, flags: int, *arguments: object, **options: object) -> int:
        if "lock" in Path(str(path)).name and "registry" not in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr("os.open", refuse)
    with BentoAPI(progress=False, bento_store=BentoStore(tmp_path / "there" / "bentos")) as api:
        assert outcome(lambda: str(api.pull("svc:v1").tag)) == "svc:v1"
    warnings = [record.getMessage() for record in caplog.records if "cannot lock" in record.getMessage()]
    assert len(warnings) == 1
    assert "Permission denied. Let only one process at a time" in warnings[0]


def test_pulled_mode_follows_umask(served: LocalRegistry, home, tmp_path):
    """BentoML makes the directory of a build by mkdtemp, with mode 0700, and packs the mode."""
    bento = make_bento(home)
    bento.chmod(0o700)
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    with BentoAPI(progress=False, bento_store=BentoStore(tmp_path / "there" / "bentos")) as api:
        pulled = api.pull("svc:v1").path
    (tmp_path / "sample").mkdir()
    assert oct(pulled.stat().st_mode) == oct((tmp_path / "sample").stat().st_mode)
    assert stat.S_IMODE((pulled / "bento.yaml").stat().st_mode) & 0o444 == 0o444


# Leftovers


def test_lock_files_do_not_accumulate(served: LocalRegistry, home, tmp_path):
    tags = [f"svc:v{number}" for number in range(16)]
    for tag in tags:
        make_bento(home, tag)
    there = BentoStore(tmp_path / "there" / "bentos")
    with BentoAPI(progress=False) as api, BentoAPI(progress=False, bento_store=there) as other:
        for tag in tags:
            api.push(tag)
            other.pull(tag)
    for tmp in (home / "tmp", tmp_path / "there" / "tmp"):
        left = [path for path in tmp.rglob("*") if path.is_file()] if tmp.exists() else []
        assert len(left) <= 8
    assert version_of(there, "iris:v1", NEW) == "v1"
