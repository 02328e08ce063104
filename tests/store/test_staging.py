"""Staging directories are private, resumable where asked, and removed after crashes."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from async_bento.errors import StoreError
from async_bento.store import locks, moves, staging
from async_bento.store.store import BentoStore
from tests.store.real_places import refuse_locks
from tests.store.stores import NEW, OLD, fill, latest, put, spawn, staging_of


def fail_halfway(store, *, state=True):
    with suppress(RuntimeError), store.stage(resume="iris:v1") as staged:
        (staged / "half").write_text("half")
        if state:
            store.state_of(staged).write_text("half of it")
        raise RuntimeError


def test_uncommitted_stage_removed(store):
    with store.stage() as staged:
        fill(staged / "sub", "iris:v1")
        (staged / "sub" / "deeper").mkdir()
        (staged / "sub").chmod(0o500)
        (staged / "sub" / "deeper").chmod(0o000)
    assert staging_of(store) == []
    assert list(store.path.iterdir()) == []


def test_stage_recreates_store(store, home):
    put(store, "iris:v1")
    shutil.rmtree(home)
    assert put(store, "iris:v1").path.is_dir()


@pytest.mark.parametrize("action", [BentoStore.prune, lambda store: store.recover("iris:v1")], ids=["prune", "recover"])
def test_recovery_waits_for_no_lock(store, monkeypatch, action):
    """What another process uses, or a killed one left of a name that another changes, is passed over at once."""
    acquire, waits = locks.Lock.acquire, []

    def note(self, timeout=None):
        waits.append(timeout)
        return acquire(self, timeout=timeout)

    path = put(store, "iris:v1").path
    left = crash_in_commit(store, "iris:v2", moved=path, before="v1", after="v2")
    with locks.Lock(left.with_name("async-bento-lock-bentos+iris")), store.stage() as staged:
        other = BentoStore(store.path)
        other.lock("iris:v1")  # finds the staging directory, under a lock of its own
        monkeypatch.setattr(locks.Lock, "acquire", note)
        action(other)
        assert (left / "commit.json").exists()
        assert staged.exists()
    assert waits
    assert set(waits) == {0}


@pytest.mark.parametrize("action", [BentoStore.prune, lambda store: store.recover("iris:v1")], ids=["prune", "recover"])
def test_recovery_without_flock_keeps_all(store, monkeypatch, action):
    """Without locks, nothing shows that another process uses a directory."""
    put(store, "iris:v1")
    used = store.path.parent / "tmp" / "async-bento-used" / "item"
    used.mkdir(parents=True)
    refuse_locks(monkeypatch, errno.ENOLCK)
    action(store)
    assert used.exists()


def test_stage_removed_on_exception(store):
    with pytest.raises(KeyboardInterrupt), store.stage():
        raise KeyboardInterrupt
    assert staging_of(store) == []


@pytest.mark.posix("file modes")
def test_stage_private_until_commit(store, home):
    with store.stage() as staged:
        assert staged.parent.parent == home / "tmp"
        assert staged.parent.name.startswith("async-bento-")
        assert staged.parent.stat().st_mode & 0o777 == 0o700
        fill(staged, "iris:v1")
        path = store.commit(staged, "iris:v1").path
    (home / "sample").mkdir()
    assert path.stat().st_mode == (home / "sample").stat().st_mode


def test_stage_full_disk_raises(store, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(StoreError, match="No space left"), store.stage():
        pass


def test_stage_follows_store_link(tmp_path, home):
    home.mkdir()
    (tmp_path / "disk" / "bentos").mkdir(parents=True)
    (home / "bentos").symlink_to(tmp_path / "disk" / "bentos")
    store = BentoStore()
    with store.stage() as staged:
        assert staged.is_relative_to(tmp_path / "disk" / "tmp")
        fill(staged, "iris:v1")
        assert store.commit(staged, "iris:v1").path == home / "bentos" / "iris" / "v1"


def test_stage_with_state_is_resumed(store):
    fail_halfway(store)
    with store.stage(resume="iris:v2") as staged:
        assert list(staged.iterdir()) == []
    with store.stage(resume="iris:v1") as staged:
        assert (staged / "half").read_text() == "half"
        assert store.state_of(staged).read_text() == "half of it"
        fill(staged, "iris:v1")
        store.commit(staged, "iris:v1")
    assert staging_of(store) == []


def test_stage_without_state_removed(store):
    fail_halfway(store, state=False)
    assert staging_of(store) == []


def test_recover_removes_stateless_stage(store, home):
    left = home / "tmp" / "async-bento-kept-bentos+iris+v1"
    (left / "item").mkdir(parents=True)
    with store.stage(resume="iris:v2"):
        assert not left.exists()


def test_stage_waits_for_recover_lock(store, home):
    fail_halfway(store)
    (kept,) = (home / "tmp").glob("async-bento-kept-*")
    lock = locks.Lock(home / "tmp" / f"async-bento-lock-{kept.name}")
    assert lock.acquire(timeout=0)
    threading.Timer(0.1, lock.release).start()
    with store.stage(resume="iris:v1") as staged:
        assert (staged / "half").exists()


def test_recover_expires_kept_stage(store, home):
    fail_halfway(store)
    (kept,) = staging_of(store)
    with store.stage():
        assert kept in staging_of(store)
    past = time.time() - staging.KEPT_SECONDS - 1
    os.utime(home / "tmp" / kept, (past, past))
    with store.stage():
        assert kept not in staging_of(store)


def test_recover_expires_journal(store, home):
    journal = store.journal("iris:v1", "https://registry.example")
    journal.write_text("half of it")
    assert store.journal("iris:v1", "https://registry.example").exists()
    past = time.time() - staging.KEPT_SECONDS - 1
    os.utime(journal, (past, past))
    with store.stage():
        assert not journal.exists()


def test_journal_expires_others(store):
    old = store.journal("iris:v1", "https://registry.example")
    old.write_text("half of it")
    past = time.time() - staging.KEPT_SECONDS - 1
    os.utime(old, (past, past))
    store.journal("iris:v2", "https://registry.example")
    assert not old.exists()


def test_kept_stage_expires_after_last_use(store, home):
    fail_halfway(store)
    (kept,) = staging_of(store)
    past = time.time() - staging.KEPT_SECONDS + 60
    os.utime(home / "tmp" / kept, (past, past))
    fail_halfway(store)
    assert time.time() - (home / "tmp" / kept).stat().st_mtime < 3600


@pytest.mark.parametrize("action", [BentoStore.prune, lambda store: store.recover("iris:v1")], ids=["prune", "recover"])
def test_unused_lock_file_is_removed(store, action):
    """A killed process leaves it."""
    put(store, "iris:v1")
    left = store.path.parent / "tmp" / "async-bento-lock-left"
    left.touch()
    action(store)
    assert not left.exists()


def test_journal_per_tag_and_registry(store, home):
    journals = {
        store.journal(tag, endpoint)
        for tag in ("iris:v1", "iris:v2")
        for endpoint in ("https://one.example", "https://two.example")
    }
    assert len(journals) == 4


def test_stage_resume_twice_raises(store, monkeypatch):
    monkeypatch.setattr(staging, "_RECOVERY_TIMEOUT", 0.1)
    with (
        store.stage(resume="iris:v1"),
        pytest.raises(StoreError, match="in use by another process"),
        store.stage(resume="iris:v1"),
    ):
        pytest.fail("two must not have it")


def test_recover_spares_live_process(store, home):
    script = (
        "import os; from async_bento.store.store import BentoStore\n"
        "with BentoStore().stage() as staged: (staged / 'x').touch(); print(staged.parent.name, flush=True); input()"
    )
    with spawn(script) as process:
        left = process.stdout.readline().strip()
        with store.stage():
            assert left in staging_of(store)  # the process runs and keeps the directory
        process.kill()
    assert (home / "tmp" / left / "item" / "x").exists()
    with store.stage():
        assert left not in staging_of(store)


def test_recover_keeps_foreign_dirs(store, home):
    (home / "tmp" / "bentoml_bento_iris").mkdir(parents=True)
    with store.stage():
        pass
    assert (home / "tmp" / "bentoml_bento_iris").is_dir()


def crash_in_commit(store, tag, *, moved, before, after):
    """Leave the temporary directory of a process that was killed while it committed the tag."""
    aside = store.path.parent / "tmp" / "async-bento-crashed"
    aside.mkdir()
    lock = f"bentos+{tag.partition(':')[0]}"
    moves.Move(str(store.path / tag.replace(":", "/")), lock, before, after).record(aside, moved)
    return aside


@pytest.mark.parametrize(
    "record", [b"", b"\xff", b"[]", b'{"place": "iris/v1"}'], ids=["empty", "no text", "a list", "of another release"]
)
def test_recover_removes_unreadable_record(store, record):
    """A power failure leaves an empty one: without an old item, the record is not synced."""
    path = put(store, "iris:v1").path
    aside = crash_in_commit(store, "iris:v2", moved=path, before="v1", after="v2")
    (aside / "commit.json").write_bytes(record)
    store.recover("iris:v1")
    assert latest(store) == "v1"
    assert staging_of(store) == []


def test_recover_restores_old_item(store, home):
    path = put(store, "iris:v1", text="old").path
    path.rename(crash_in_commit(store, "iris:v1", moved=home, before="v1", after="v1") / "item")
    store.recover("iris:v1")
    assert (path / "text").read_text() == "old"
    assert latest(store) == "v1"
    assert staging_of(store) == []


def test_recover_restores_removed_directories(store, home):
    path = put(store, "iris:v1", text="old").path
    path.rename(crash_in_commit(store, "iris:v1", moved=home, before="v1", after="v1") / "item")
    shutil.rmtree(store.path)
    store.recover("iris:v1")
    assert (path / "text").read_text() == "old"
    assert staging_of(store) == []


@pytest.mark.parametrize("has_new", [True, False])
def test_recover_finishes_copy(store, home, has_new):
    """Of a commit to a directory on another filesystem, which copies next to the place of the item."""
    path = put(store, "iris:v1", text="old").path
    path.rename(path.with_name(".async-bento-old-v1"))
    fill(path if has_new else path.with_name(".async-bento-copy-v1"), "iris:v1", text="new")
    crash_in_commit(store, "iris:v1", moved=home, before="v1", after="v1")
    store.recover("iris:v1")
    assert (path / "text").read_text() == ("new" if has_new else "old")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["latest", "v1"]
    assert staging_of(store) == []


def test_commit_removes_left_copy(store):
    path = put(store, "iris:v1").path
    path.with_name(".async-bento-copy-v0").mkdir()
    put(store, "iris:v2")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["latest", "v1", "v2"]


def test_delete_recovers_crashed_commit(store, home):
    put(store, "iris:v1")
    crash_in_commit(store, "iris:v2", moved=home, before="v1", after="v2")
    store.delete("iris:v1")
    assert staging_of(store) == []


def test_recover_before_move_keeps_latest(store, home):
    put(store, "iris:v1", OLD)
    put(store, "iris:v2", NEW)
    crash_in_commit(store, "iris:v1", moved=home, before="v2", after="v1")
    store.recover("iris:v1")
    assert latest(store) == "v2"
    assert staging_of(store) == []


def test_recover_keeps_new_item(store):
    path = put(store, "iris:v1", text="new").path
    fill(crash_in_commit(store, "iris:v1", moved=path, before="v1", after="v1") / "item", "iris:v1", text="old")
    store.recover("iris:v1")
    assert (path / "text").read_text() == "new"
    assert staging_of(store) == []


def test_recover_updates_latest(store):
    put(store, "iris:v1", OLD)
    path = put(store, "iris:v2", NEW).path
    (store.path / "iris" / "latest").write_text("v1")
    crash_in_commit(store, "iris:v2", moved=path, before="v1", after="v2")
    store.recover("rose:v1")
    assert latest(store) == "v2"
    assert staging_of(store) == []
