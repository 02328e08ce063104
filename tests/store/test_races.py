"""Concurrent changes of one name by processes and threads keep the store consistent."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from async_bento._core import platform
from async_bento.store import staging
from tests.store.stores import OLD, fill, latest, put, spawn, staging_of

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


def finish(processes):
    for process in processes:
        process.communicate(timeout=30)
    return [process.returncode for process in processes]


def test_commit_delete_race_is_safe(store, tmp_path):
    fill(tmp_path / "source", "iris:v1")
    put(store, "iris:v0", OLD)
    ways = ("commit", "replace", "replace", "delete", "delete")
    assert finish(race(*((way, tmp_path / "source", 25) for way in ways))) == [0] * len(ways)
    versions = [item.tag.version for item in store.list("iris")]
    assert versions in (["v0"], ["v0", "v1"])
    assert latest(store) in versions
    assert staging_of(store) == []


def test_delete_race_removes_item(store, tmp_path):
    put(store, "iris:v1")
    assert finish(race(("delete", tmp_path, 1), ("delete", tmp_path, 1))) == [0, 0]
    assert list(store.path.iterdir()) == []


def test_reader_sees_old_or_new_item(store, tmp_path):
    for side in ("left", "right"):
        fill(tmp_path / side, "iris:v1", service=side, labels={"side": side})
    if not platform.exchange(tmp_path / "left", tmp_path / "right"):
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


def test_thread_race_keeps_latest(store):
    def one(day):
        put(store, f"iris:v{day}", f"2024-01-{day:02}T00:00:00+00:00")

    days = [*range(1, 29)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, sorted(days, key=lambda day: day * 11 % 29)))
    assert latest(store) == "v28"
    assert len(store.list("iris")) == len(days)


def test_commit_waits_for_name_lock(store, home):
    with staging.StagingArea(store.path).name_lock("iris"):
        thread = threading.Thread(target=put, args=(store, "iris:v1"))
        thread.start()
        time.sleep(0.2)
        assert not (store.path / "iris").exists()
    thread.join(timeout=10)
    assert store.get("iris:v1")
