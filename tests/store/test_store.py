"""The store finds, takes in and removes items, and nobody ever sees half of one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from async_bento.errors import InvalidTagError, NotFoundError, StoreError
from async_bento.store import filesystem, locks, staging
from async_bento.store.items import Bento, Model
from async_bento.store.store import BentoStore, ModelStore
from async_bento.store.tag import Tag

OLD, MIDDLE, NEW = "2024-01-01T00:00:00+00:00", "2024-02-01T00:00:00+00:00", "2024-03-01T00:00:00+00:00"


def fill(path, tag, created=OLD, text="", **fields):
    """Make a directory a bento: `tag`, with a file that says `text`."""
    name, version = tag.split(":")
    path.mkdir(parents=True, exist_ok=True)
    info = {"service": "s:S", "name": name, "version": version, "creation_time": created, **fields}
    (path / "bento.yaml").write_text(yaml.safe_dump(info))
    (path / "text").write_text(text)


def fill_model(path, tag, size=0):
    name, version = tag.split(":")
    path.mkdir(parents=True, exist_ok=True)
    context = {"framework_name": "", "framework_versions": {}}
    info = {"name": name, "version": version, "module": "", "api_version": "v1", "context": context}
    (path / "model.yaml").write_text(yaml.safe_dump({**info, "creation_time": OLD}))
    (path / "weights").write_bytes(bytes(size))


def put(store, tag, created=OLD, text="", *, replace=False, **fields):
    """Take a bento into a store as a pull does."""
    with store.stage() as staged:
        fill(staged, tag, created, text, **fields)
        return store.commit(staged, tag, replace=replace)


def latest(store, name="iris"):
    return (store.path / name / "latest").read_text()


def scratch_of(store):
    """What lies in scratch, but for locks."""
    return sorted(path.name for path in (store.path.parent / "tmp").iterdir() if path.name != "async-bento-locks")


@pytest.fixture
def store():
    return BentoStore()


# Finding


def test_the_stores_lie_in_bentoml_home(home):
    assert BentoStore().path == home / "bentos"
    assert ModelStore().path == home / "models"


def test_another_directory_may_be_the_store(tmp_path):
    store = BentoStore(str(tmp_path / "mine"))
    put(store, "iris:v1")
    assert (tmp_path / "mine" / "iris" / "v1" / "bento.yaml").is_file()


def test_an_item_is_found_by_its_tag(store):
    put(store, "iris:v1")
    put(store, "iris:v2")
    for tag in ("iris:v1", Tag("iris", "v1"), SimpleNamespace(name="iris", version="v1")):
        assert store.get(tag).tag == Tag("iris", "v1")


def test_a_name_means_its_newest_version(store):
    put(store, "iris:b", NEW)
    put(store, "iris:c", OLD)
    assert store.get("iris").tag == store.get("iris:latest").tag == Tag("iris", "b")


def test_the_beginning_of_a_version_will_do(store):
    put(store, "iris:abc")
    put(store, "iris:xyz")
    assert store.get("iris:ab").tag.version == "abc"


def test_a_whole_version_is_no_beginning_of_a_longer_one(store):
    put(store, "iris:abc")
    put(store, "iris:ab")
    assert store.get("iris:ab").tag.version == "ab"


def test_a_beginning_of_two_versions_lists_them(store):
    put(store, "iris:abc")
    put(store, "iris:abd")
    with pytest.raises(NotFoundError, match=r"2 versions begin with ab \(abc, abd\)"):
        store.get("iris:ab")


def test_a_pull_can_ask_for_exactly_one_version(store):
    put(store, "iris:abc")
    with pytest.raises(NotFoundError):
        store.get("iris:ab", prefix=False)


def test_a_tag_that_is_none_is_not_looked_for(store):
    with pytest.raises(InvalidTagError):
        store.get("../iris")


def test_not_found_says_where_it_looked_and_what_would_help(store):
    with pytest.raises(NotFoundError) as caught:
        store.get("iris:v1")
    assert (
        str(caught.value) == f"no bento iris:v1 in {store.path}: the store is empty. "
        "To download the bento, run `async-bento pull iris:v1`."
    )


def test_not_found_names_what_looks_like_it_first(store):
    for name in ("aaa", "bbb", "ccc", "ddd", "eee", "fff", "irsi"):
        put(store, f"{name}:v1")
    with pytest.raises(NotFoundError, match=r": the store has irsi, aaa, bbb, ccc, ddd and 2 more\. "):
        store.get("iris")


def test_not_found_names_the_versions_there_are(store):
    put(store, "iris:v1")
    with pytest.raises(NotFoundError, match=r": iris has v1\. "):
        store.get("iris:w1")


def test_not_found_for_a_model_says_how_to_pull_a_model():
    with pytest.raises(NotFoundError, match=r"no model iris .* `async-bento models pull iris`"):
        ModelStore().get("iris")


def test_looking_for_what_is_not_there_leaves_no_trace(store, home):
    for tag in ("iris", "iris:v1"):
        with pytest.raises(NotFoundError):
            store.get(tag)
    assert not home.exists()


def test_a_directory_that_says_another_tag_is_an_error(store):
    put(store, "iris:v1")
    shutil.copytree(store.path / "iris" / "v1", store.path / "iris" / "v2")
    with pytest.raises(StoreError, match=r"bento\.yaml: the file describes iris:v1, not iris:v2"):
        store.get("iris:v2")


def test_everything_is_listed_by_tag(store):
    assert list(store.list()) == []
    for tag in ("rose:v1", "iris:v2", "iris:v10"):
        put(store, tag)
    assert [str(item.tag) for item in store.list()] == ["iris:v10", "iris:v2", "rose:v1"]
    assert [str(item.tag) for item in store.list("iris")] == ["iris:v10", "iris:v2"]
    assert [str(item.tag) for item in store.list("iris:v2")] == ["iris:v2"]
    assert list(store.list("iris:v")) == []


def test_listing_an_unknown_name_is_an_error(store):
    with pytest.raises(NotFoundError):
        store.list("iris")


def test_a_broken_item_spoils_no_list(store, caplog):
    put(store, "iris:v1")
    (store.path / "iris" / "v2").mkdir()
    (store.path / ".ipynb_checkpoints").mkdir()
    (store.path / "iris" / ".DS_Store").touch()
    assert [str(item.tag) for item in store.list()] == ["iris:v1"]
    assert "the directory has no bento.yaml" in caplog.text


def test_models_have_a_store_that_does_the_same():
    store = ModelStore()
    with store.stage() as staged:
        fill_model(staged, "iris:v1")
        assert store.commit(staged, "iris:v1") == Model.from_path(store.path / "iris" / "v1")
    assert store.get("iris").tag == Tag("iris", "v1")


# Latest


def test_of_two_equally_new_the_one_that_came_last_is_the_latest(store):
    put(store, "iris:b", OLD)
    put(store, "iris:a", OLD)
    assert latest(store) == "a"


def test_an_older_one_that_comes_last_is_not_the_latest(store):
    put(store, "iris:a", NEW)
    put(store, "iris:b", OLD)
    assert latest(store) == "a"


def test_replacing_the_latest_by_something_older_finds_the_newest_anew(store):
    put(store, "iris:a", NEW)
    put(store, "iris:b", MIDDLE)
    put(store, "iris:a", OLD, replace=True)
    assert latest(store) == "b"


@pytest.mark.parametrize("content", [None, "", "gone", "../iris/v1", "V1 V2", "\xff"])
def test_latest_is_repaired_where_it_is_wrong(store, content):
    put(store, "iris:v1", NEW)
    put(store, "iris:v2", OLD)
    file = store.path / "iris" / "latest"
    file.unlink()
    if content is not None:
        file.write_text(content, encoding="latin-1")
    assert store.get("iris").tag.version == "v1"
    assert latest(store) == "v1"


def test_latest_is_read_as_bentoml_may_have_edited_it(store):
    put(store, "iris:v1", OLD)
    put(store, "iris:v2", NEW)
    (store.path / "iris" / "latest").write_text("v1\n")
    assert store.get("iris").tag.version == "v1"


def test_a_store_that_cannot_be_written_is_read_all_the_same(store, monkeypatch):
    put(store, "iris:v1")
    (store.path / "iris" / "latest").unlink()
    shutil.rmtree(store.path.parent / "tmp")
    (store.path.parent / "tmp").touch()  # nothing can be made in there, not even by root
    assert store.get("iris").tag.version == "v1"
    assert not (store.path / "iris" / "latest").exists()


def test_latest_is_what_bentoml_writes(store):
    put(store, "iris:v1")
    assert (store.path / "iris" / "latest").read_bytes() == b"v1"


# Staging and committing


def test_what_was_not_committed_is_gone(store):
    with store.stage() as staged:
        fill(staged / "sub", "iris:v1")
        (staged / "sub" / "deeper").mkdir()
        (staged / "sub").chmod(0o500)
        (staged / "sub" / "deeper").chmod(0o000)
    assert scratch_of(store) == []
    assert list(store.path.iterdir()) == []


def test_a_failed_block_leaves_nothing(store):
    with pytest.raises(KeyboardInterrupt), store.stage():
        raise KeyboardInterrupt
    assert scratch_of(store) == []


def test_a_staged_directory_is_ours_and_closed_to_others_until_it_is_committed(store, home):
    with store.stage() as staged:
        assert staged.parent.parent == home / "tmp"
        assert staged.parent.name.startswith("async-bento-")
        assert staged.parent.stat().st_mode & 0o777 == 0o700
        fill(staged, "iris:v1")
        path = store.commit(staged, "iris:v1").path
    (home / "sample").mkdir()
    assert path.stat().st_mode == (home / "sample").stat().st_mode


def test_a_commit_moves_and_does_not_copy(store):
    with store.stage() as staged:
        fill(staged, "iris:v1")
        inode = (staged / "text").stat().st_ino
        item = store.commit(staged, "iris:v1")
        assert not staged.exists()
    assert item == Bento.from_path(store.path / "iris" / "v1")
    assert (item.path / "text").stat().st_ino == inode
    assert scratch_of(store) == []


def test_an_item_that_is_there_stays(store):
    put(store, "iris:v1", text="first")
    with store.stage() as staged:
        fill(staged, "iris:v1", text="second")
        item = store.commit(staged, "iris:v1")
        assert staged.exists()
    assert (item.path / "text").read_text() == "first"
    assert scratch_of(store) == []


def test_an_item_is_replaced_when_asked(store):
    put(store, "iris:v1", text="first", labels={"n": "1"})
    item = put(store, "iris:v1", text="second", replace=True)
    assert (item.path / "text").read_text() == "second"
    assert item.labels == {}
    assert scratch_of(store) == []


def test_the_old_item_is_gone_as_soon_as_it_is_replaced(store):
    put(store, "iris:v1", text="first")
    with store.stage() as staged:
        fill(staged, "iris:v1", text="second")
        store.commit(staged, "iris:v1", replace=True)
        assert not staged.exists()


@pytest.fixture
def synced(monkeypatch):
    """The paths that were synced, or `everything`, in order; and the renames into the store."""
    done = []
    fsync, sync_filesystem, rename = os.fsync, filesystem._sync_filesystem, Path.rename

    def note_fsync(descriptor):
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def note_rename(self, target):
        if target.name != ".async-bento-probe":
            done.append(f"rename to {target.name}")
        return rename(self, target)

    monkeypatch.setattr("os.fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(
        filesystem, "_sync_filesystem", lambda path: sync_filesystem(path) and not done.append("everything")
    )
    return done


@pytest.mark.skipif(sys.platform != "linux", reason="syncfs is Linux's")
def test_a_commit_is_on_the_disk_before_its_rename_and_the_rename_before_its_end(store, synced):
    put(store, "iris:v1", OLD)
    assert synced == ["everything", "bentos", "rename to v1", "latest", "iris"]
    synced.clear()
    put(store, "iris:v2", OLD)
    assert synced == ["everything", "rename to v2", "latest", "iris"]


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, None])
def test_where_a_filesystem_cannot_be_synced_as_a_whole_each_file_is(store, synced, monkeypatch, number):
    def refuse(_):
        ctypes.set_errno(number)
        return -1

    libc = SimpleNamespace(renameat2=lambda *_: 0, **({} if number is None else {"syncfs": refuse}))
    with store.stage() as staged:
        fill(staged, "iris:v1")
        (staged / "sub").mkdir()
        (staged / "sub" / "deep").touch()
        (staged / "link").symlink_to("nowhere")
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: libc)
        store.commit(staged, "iris:v1")
    before = synced[: synced.index("rename to v1")]
    assert sorted(before) == sorted(["bento.yaml", "text", "item", "deep", "sub", "bentos"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_what_was_written_and_does_not_reach_the_disk_is_not_committed(store, monkeypatch, number):
    def refuse(_):
        ctypes.set_errno(number)
        return -1

    put(store, "iris:v1", text="first")
    with store.stage() as staged:
        fill(staged, "iris:v1", text="second")
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: SimpleNamespace(syncfs=refuse))
        with pytest.raises(StoreError, match=f"cannot write iris:v1 to .*: {os.strerror(number)}"):
            store.commit(staged, "iris:v1", replace=True)
        monkeypatch.undo()
    assert (BentoStore(store.path).get("iris:v1").path / "text").read_text() == "first"
    assert scratch_of(store) == []


def test_a_delete_is_on_the_disk_before_files_are_removed(store, synced):
    put(store, "iris:v1")
    put(store, "iris:v2")
    synced.clear()
    store.delete("iris:v1")
    assert synced[:2] == ["rename to item", "iris"]


def test_an_item_is_replaced_where_no_exchange_is_possible(store, monkeypatch):
    monkeypatch.setattr("async_bento.store.staging.exchange", lambda *_: False)
    put(store, "iris:v1", text="first")
    item = put(store, "iris:v1", text="second", replace=True)
    assert (item.path / "text").read_text() == "second"
    assert scratch_of(store) == []


def test_the_old_item_comes_back_when_a_replacement_fails_halfway(store, monkeypatch):
    monkeypatch.setattr("async_bento.store.staging.exchange", lambda *_: False)
    put(store, "iris:v1", text="first")
    rename = Path.rename

    def fail_for_the_new_one(self, target):
        if self.joinpath("text").exists() and (self / "text").read_text() == "second":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(StoreError, match="Input/output error"):
        put(store, "iris:v1", text="second", replace=True)
    assert (store.get("iris:v1").path / "text").read_text() == "first"


def test_a_broken_item_is_kept_unless_replaced(store):
    (store.path / "iris" / "v1").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"has no bento\.yaml"):
        put(store, "iris:v1")
    assert put(store, "iris:v1", replace=True).tag == Tag("iris", "v1")


@pytest.mark.parametrize("tag", ["iris:v2", "rose:v1"])
def test_a_staged_directory_must_be_what_it_is_committed_as(store, tag):
    with store.stage() as staged:
        fill(staged, "iris:v1")
        with pytest.raises(StoreError, match=f"the file describes iris:v1, not {tag}"):
            store.commit(staged, tag)
    assert list(store.path.iterdir()) == []


def test_an_unfinished_directory_is_not_committed(store):
    with store.stage() as staged, pytest.raises(StoreError, match=r"has no bento\.yaml"):
        store.commit(staged, "iris:v1")
    assert list(store.path.iterdir()) == []


@pytest.mark.parametrize("tag", ["iris", "iris:latest"])
def test_a_commit_needs_a_version(store, tag):
    with store.stage() as staged, pytest.raises(InvalidTagError):
        store.commit(staged, tag)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_what_the_disk_says_is_told_as_an_error_of_the_store(store, monkeypatch, number):
    def fail(self, target):
        raise OSError(number, os.strerror(number), str(self))

    with store.stage() as staged:
        fill(staged, "iris:v1")
        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(StoreError, match=f"cannot write iris:v1 to .*: {os.strerror(number)}: /") as caught:
            store.commit(staged, "iris:v1")
        monkeypatch.undo()
    assert isinstance(caught.value.__cause__, OSError)


def test_a_full_disk_fails_the_stage_as_an_error_of_the_store(store, monkeypatch):
    def fail(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    with pytest.raises(StoreError, match="No space left"), store.stage():
        pass


def test_a_store_on_another_filesystem_is_told_before_the_download(store, monkeypatch):
    def fail(self, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StoreError, match="Mount their parent directory"), store.stage():
        pytest.fail("nothing may be staged")


def test_a_store_that_is_a_link_stages_beside_its_target(tmp_path, home):
    home.mkdir()
    (tmp_path / "disk" / "bentos").mkdir(parents=True)
    (home / "bentos").symlink_to(tmp_path / "disk" / "bentos")
    store = BentoStore()
    with store.stage() as staged:
        assert staged.is_relative_to(tmp_path / "disk" / "tmp")
        fill(staged, "iris:v1")
        assert store.commit(staged, "iris:v1").path == home / "bentos" / "iris" / "v1"


def test_a_read_only_item_is_committed_replaced_and_deleted(store):
    for replace in (False, True):
        with store.stage() as staged:
            fill(staged, "iris:v1", text=str(replace))
            (staged / "sub").mkdir()
            (staged / "sub" / "file").touch()
            (staged / "sub").chmod(0o500)
            staged.chmod(0o500)
            store.commit(staged, "iris:v1", replace=replace)
    assert (store.path / "iris" / "v1" / "sub").stat().st_mode & 0o777 == 0o500
    assert (store.path / "iris" / "v1").stat().st_mode & 0o777 == 0o700  # or nobody but root could move it
    assert (store.path / "iris" / "v1" / "text").read_text() == "True"
    store.delete("iris:v1")
    assert scratch_of(store) == []
    assert list(store.path.iterdir()) == []


# Staging that is gone on with


def fail_halfway(store, *, state=True):
    with suppress(RuntimeError), store.stage(resume="iris:v1") as staged:
        (staged / "half").write_text("half")
        if state:
            store.state_of(staged).write_text("half of it")
        raise RuntimeError


def test_a_failed_stage_that_says_how_is_gone_on_with(store):
    fail_halfway(store)
    with store.stage(resume="iris:v2") as staged:
        assert list(staged.iterdir()) == []
    with store.stage(resume="iris:v1") as staged:
        assert (staged / "half").read_text() == "half"
        assert store.state_of(staged).read_text() == "half of it"
        fill(staged, "iris:v1")
        store.commit(staged, "iris:v1")
    assert scratch_of(store) == []


def test_a_failed_stage_that_does_not_say_how_to_go_on_is_removed(store):
    fail_halfway(store, state=False)
    assert scratch_of(store) == []


def test_a_kept_stage_of_a_killed_process_that_does_not_say_how_to_go_on_is_removed(store, home):
    left = home / "tmp" / "async-bento-kept-bentos+iris+v1"
    (left / "item").mkdir(parents=True)
    with store.stage(resume="iris:v2"):
        assert not left.exists()


def test_a_kept_stage_that_a_sweep_looks_at_is_waited_for(store, home):
    fail_halfway(store)
    (kept,) = (home / "tmp").glob("async-bento-kept-*")
    descriptor = locks.lock_directory(kept)
    threading.Timer(0.1, os.close, [descriptor]).start()
    with store.stage(resume="iris:v1") as staged:
        assert (staged / "half").exists()


def test_a_kept_stage_that_nobody_goes_on_with_is_removed_after_a_week(store, home):
    fail_halfway(store)
    (kept,) = scratch_of(store)
    with store.stage():
        assert kept in scratch_of(store)
    past = time.time() - staging.KEPT_SECONDS - 1
    os.utime(home / "tmp" / kept, (past, past))
    with store.stage():
        assert kept not in scratch_of(store)


def test_a_journal_that_nobody_goes_on_with_is_removed_after_a_week(store, home):
    journal = store.journal("iris:v1", "https://registry.example")
    journal.write_text("half of it")
    assert store.journal("iris:v1", "https://registry.example").exists()
    past = time.time() - staging.KEPT_SECONDS - 1
    os.utime(journal, (past, past))
    with store.stage():
        assert not journal.exists()


def test_each_tag_and_registry_has_a_journal_of_its_own(store, home):
    journals = {
        store.journal(tag, endpoint)
        for tag in ("iris:v1", "iris:v2")
        for endpoint in ("https://one.example", "https://two.example")
    }
    assert len(journals) == 4


def test_a_kept_stage_has_one_user_at_a_time(store):
    with (
        store.stage(resume="iris:v1"),
        pytest.raises(StoreError, match="in use by another process"),
        store.stage(resume="iris:v1"),
    ):
        pytest.fail("two must not have it")


def test_what_a_killed_process_left_is_removed_by_the_next(store, home):
    script = (
        "import os; from async_bento.store.store import BentoStore\n"
        "with BentoStore().stage() as staged: (staged / 'x').touch(); print(staged.parent.name, flush=True); input()"
    )
    with spawn(script) as process:
        left = process.stdout.readline().strip()
        with store.stage():
            assert left in scratch_of(store)  # it lives, and keeps it
        process.kill()
    assert (home / "tmp" / left / "item" / "x").exists()
    with store.stage():
        assert left not in scratch_of(store)


def test_what_others_have_in_tmp_is_left_alone(store, home):
    (home / "tmp" / "bentoml_bento_iris").mkdir(parents=True)
    with store.stage():
        pass
    assert (home / "tmp" / "bentoml_bento_iris").is_dir()


# Deleting


def test_a_deleted_item_is_gone_and_the_next_newest_is_the_latest(store):
    put(store, "iris:a", OLD)
    put(store, "iris:b", NEW)
    put(store, "iris:c", MIDDLE)
    store.delete("iris:b")
    assert latest(store) == "c"
    with pytest.raises(NotFoundError):
        store.get("iris:b")
    assert scratch_of(store) == []


def test_the_last_version_takes_its_name_along(store):
    put(store, "iris:v1")
    store.delete("iris:latest")
    assert list(store.path.iterdir()) == []


def test_a_delete_needs_a_version(store):
    put(store, "iris:v1")
    with pytest.raises(InvalidTagError, match=r"Did you mean `iris:latest`\?"):
        store.delete("iris")
    assert store.get("iris:v1")


def test_a_delete_takes_no_beginning_of_a_version(store):
    put(store, "iris:v10")
    with pytest.raises(NotFoundError, match="v10"):
        store.delete("iris:v1")
    assert store.get("iris:v10")


def test_a_broken_item_can_be_deleted(store):
    (store.path / "iris" / "v1").mkdir(parents=True)
    store.delete("iris:v1")
    assert not (store.path / "iris").exists()


def test_deleting_a_link_leaves_what_it_points_to(store, tmp_path):
    fill(tmp_path / "elsewhere", "iris:v1")
    (tmp_path / "elsewhere").chmod(0o555)
    (store.path / "iris").mkdir(parents=True)
    (store.path / "iris" / "v1").symlink_to(tmp_path / "elsewhere")
    store.delete("iris:v1")
    assert (tmp_path / "elsewhere" / "text").exists()
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o555


def test_what_cannot_be_moved_is_deleted_where_it_is(store, monkeypatch):
    put(store, "iris:v1")
    rename = Path.rename

    def refuse(self, target):
        if self == store.path / "iris" / "v1":  # as overlayfs does with what an image brought
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    store.delete("iris:v1")
    assert list(store.path.iterdir()) == []


def test_removing_a_tree_leaves_what_its_links_point_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    filesystem.remove_tree(tmp_path / "tree")
    filesystem.remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "kept" / "file").exists()


# Many at once


def spawn(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def finish(processes):
    for process in processes:
        process.communicate(timeout=30)
    return [process.returncode for process in processes]


def test_a_lock_is_respected_by_other_processes_and_freed_by_their_death(store):
    script = (
        "from async_bento.store.store import BentoStore\n"
        "with BentoStore().lock('iris:v1'): print('locked', flush=True); input()"
    )
    with spawn(script) as process:
        assert process.stdout.readline() == "locked\n"
        lock = store.lock("iris:v1")
        assert not lock.acquire(timeout=0)
        assert not lock.acquire(timeout=0.1)
        with store.lock("iris:v2"):
            pass
        process.kill()
    assert lock.acquire(timeout=5)
    lock.release()


def test_a_lock_is_respected_by_other_threads_and_may_change_threads(store):
    mine, other = store.lock("iris:v1"), store.lock("iris:v1")
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        assert one.submit(mine.acquire).result()
        assert not one.submit(other.acquire, 0).result()
        assert not two.submit(other.acquire, 0).result()
        two.submit(mine.release).result()
        assert one.submit(other.acquire).result()
        two.submit(other.release).result()


def test_who_holds_a_lock_can_commit_and_delete(store):
    with store.lock("iris:v1"):
        put(store, "iris:v1")
        store.delete("iris:v1")


def test_a_lock_that_cannot_be_made_is_an_error_of_the_store(store, home):
    home.mkdir()
    (home / "tmp").touch()
    with pytest.raises(StoreError, match="cannot lock"):
        store.lock("iris:v1").acquire()


CHURN = """
import shutil, sys
from async_bento.errors import NotFoundError
from async_bento.store.store import BentoStore

what, source, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = BentoStore()
print("ready", flush=True)
input()
for _ in range(rounds):
    if what == "delete":
        try:
            store.delete("iris:v1")
        except NotFoundError:
            pass
        continue
    with store.stage() as staged:
        shutil.copytree(source, staged, dirs_exist_ok=True)
        store.commit(staged, "iris:v1", replace=what == "replace")
"""


def race(*arguments):
    processes = [spawn(CHURN, *each) for each in arguments]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def test_processes_that_commit_and_delete_one_tag_leave_the_store_whole(store, tmp_path):
    fill(tmp_path / "source", "iris:v1")
    put(store, "iris:v0", OLD)
    ways = ("commit", "replace", "replace", "delete", "delete")
    assert finish(race(*((way, tmp_path / "source", 25) for way in ways))) == [0] * len(ways)
    versions = [item.tag.version for item in store.list("iris")]
    assert versions in (["v0"], ["v0", "v1"])
    assert latest(store) in versions
    assert scratch_of(store) == []


def test_two_processes_that_delete_one_item_agree(store, tmp_path):
    put(store, "iris:v1")
    assert finish(race(("delete", tmp_path, 1), ("delete", tmp_path, 1))) == [0, 0]
    assert list(store.path.iterdir()) == []


def test_a_reader_sees_the_old_item_or_the_new_one_and_never_none(store, tmp_path):
    for side in ("left", "right"):
        fill(tmp_path / side, "iris:v1", service=side, labels={"side": side})
    if not filesystem.exchange(tmp_path / "left", tmp_path / "right"):
        pytest.skip("no exchange on this filesystem")
    put(store, "iris:v1", labels={"side": "left"}, service="left")
    processes = race(*(("replace", tmp_path / side, 40) for side in ("left", "right")))
    seen = set()
    while any(process.poll() is None for process in processes):
        for tag in ("iris:v1", "iris"):
            item = store.get(tag)
            assert item.info.service == item.labels["side"]
            seen.add(item.info.service)
    assert finish(processes) == [0, 0]
    assert seen == {"left", "right"}


def test_threads_that_commit_many_versions_agree_on_the_latest(store):
    def one(day):
        put(store, f"iris:v{day}", f"2024-01-{day:02}T00:00:00+00:00")

    days = [*range(1, 29)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, sorted(days, key=lambda day: day * 11 % 29)))
    assert latest(store) == "v28"
    assert len(store.list("iris")) == len(days)


def test_a_commit_waits_for_another_change_of_its_name(store, home):
    with staging.StagingArea(home / "tmp").lock("bentos+iris"):
        thread = threading.Thread(target=put, args=(store, "iris:v1"))
        thread.start()
        time.sleep(0.2)
        assert not (store.path / "iris").exists()
    thread.join(timeout=10)
    assert store.get("iris:v1")


def test_an_exchange_swaps_two_directories(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not filesystem.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("no exchange on this filesystem")
    assert (tmp_path / "a" / "b").exists()
    assert (tmp_path / "b" / "a").exists()
    with pytest.raises(FileNotFoundError):
        filesystem.exchange(tmp_path / "a", tmp_path / "nowhere")


# Sizes


def test_the_size_of_a_bento_counts_its_models_once(store, home, caplog):
    models = ModelStore()
    for tag, size in (("iris:v1", 100), ("rose:v1", 1000), ("own:v1", 10_000)):
        fill_model(models.path / tag.replace(":", "/"), tag, size)
    named = [{"tag": tag} for tag in ("iris:v1", "own:v1", "gone:v1")]
    service = {"name": "A", "service": "", "models": [{"tag": "rose:v1"}, {"tag": "iris:v1"}]}
    hub = {"tag": "gpt:v1", "registry": "huggingface"}
    bento = put(store, "flowers:v1", models=[*named, hub], services=[service])
    fill_model(bento.path / "models" / "own" / "v1", "own:v1", 7)

    def yaml_of(path):
        return (path / "model.yaml").stat().st_size

    outside = 100 + yaml_of(models.path / "iris" / "v1") + 1000 + yaml_of(models.path / "rose" / "v1")
    inside = 7 + yaml_of(bento.path / "models" / "own" / "v1")
    assert models.total_size(bento) == (bento.path / "bento.yaml").stat().st_size + inside + outside
    assert [record.getMessage() for record in caplog.records] == [
        f"The size of flowers:v1 is without its model gone:v1, which is not in {models.path}."
    ]
