"""Retention: pruning by hand and by the hour, versions that are never replaced, and the space that versions use."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import ConfigError
from async_bento.cli import main
from async_bento.registry import LocalRegistry, retention
from async_bento.registry.item_types import BENTO, MODEL
from async_bento.registry.retention import Pruner, RetentionPolicy
from tests.cli_runner import make_runner
from tests.registry.conftest import MODELS, arguments, clean_up, disk_only

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.conftest import Caller, Serve, Storage, Stored

DATA = os.urandom(1_000)
DAY = 24 * 3600.0


async def push(caller: Caller, *versions: str, name: str = "iris", size: int = 1_000, **fields: Any) -> None:
    """Register and upload versions."""
    for version in versions:
        await caller.create(name, version, **fields)
        response = await caller.api("PUT", f"{caller.items(name)}/{version}/upload", data=DATA[:size])
        assert response.status == 200


async def versions(caller: Caller, name: str = "iris") -> list[str]:
    """Return the versions of a repository in the order of registration."""
    listed = await caller.list(caller.items(name))
    assert listed["total"] == len(listed["items"])
    return [item["version"] for item in listed["items"]][::-1]


async def run(storage: Storage, command: str, *options: str) -> Any:
    """Run a command on the registry that is named `registry`."""
    invoked = ["registry", command, *arguments(storage), *options]
    return await asyncio.to_thread(make_runner().invoke, main, invoked)


async def prune(storage: Storage, *options: str) -> Any:
    """Prune without a question, and return the printed JSON."""
    result = await run(storage, "prune", "--yes", "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def tags(pruned: Any) -> list[str]:
    return [f"{each['kind']} {each['tag']}" for each in pruned["deleted"]]


async def prune_at(caller: Caller, policy: RetentionPolicy, *, hours: float) -> list[str]:
    """Prune as of a number of hours later, and return the tags."""
    running = caller.registry._running
    assert running is not None
    pruner = Pruner(running.retention, policy, datetime.now(timezone.utc) + timedelta(hours=hours))
    return [each.tag async for batch, _ in pruner.delete(await pruner.plan()) for each in batch]


# Deleted versions


async def test_prune_keeps_newest_versions(caller: Caller, storage: Storage):
    await push(caller, "v1", "v2", "v3")
    await push(caller, "w1", "w2", name="other")
    await push(caller.about(MODELS), "m1", "m2", "m3", name="clf")
    pruned = await prune(storage, "--keep", "2")
    assert tags(pruned) == ["bento iris:v1", "model clf:m1"]
    assert (pruned["dry_run"], pruned["size_bytes"]) == (False, 2_000)
    assert await versions(caller) == ["v2", "v3"]
    assert await versions(caller, "other") == ["w1", "w2"]
    assert await versions(caller.about(MODELS), "clf") == ["m2", "m3"]
    assert (await caller.ok("GET", "/bento_repositories/iris"))["n_bentos"] == 2
    assert (await caller.download("v2")).body == DATA
    assert tags(await prune(storage, "--keep", "2")) == []


async def test_prune_counts_complete_only(caller: Caller, storage: Storage):
    await push(caller, "v1", "v2")
    for version in ("v3", "v4"):
        await caller.create(version=version)
        await caller.finish(version, "failed")
    assert tags(await prune(storage, "--keep", "2")) == []
    assert tags(await prune(storage, "--keep", "1")) == ["bento iris:v1"]
    assert await versions(caller) == ["v2", "v3", "v4"]


async def test_prune_keeps_uploads_to_resume(caller: Caller):
    await caller.create(version="v1")
    await caller.start_multipart("v1")
    await push(caller, "v2", "v3")
    await caller.create(version="v4")
    policy = RetentionPolicy(keep=1)
    assert await prune_at(caller, policy, hours=23) == ["iris:v2"]
    assert await prune_at(caller, policy, hours=25) == ["iris:v1"]
    assert await versions(caller) == ["v3", "v4"]


async def test_prune_age_is_since_push(caller: Caller):
    await push(caller, "v1", "v2")
    await push(caller, "v1", name="rose")
    policy = RetentionPolicy(older_than=DAY)
    assert await prune_at(caller, policy, hours=23.9) == []
    item = await caller.get()
    assert item["upload_started_at"] >= item["created_at"]
    assert await prune_at(caller, policy, hours=24.1) == ["iris:v1", "iris:v2", "rose:v1"]
    assert await versions(caller) == []
    await push(caller, "v1")  # the repository is there


async def test_prune_needs_both_conditions(caller: Caller):
    await push(caller, "v1", "v2", "v3")
    policy = RetentionPolicy(keep=2, older_than=DAY)
    assert await prune_at(caller, policy, hours=23) == []
    assert await prune_at(caller, policy, hours=25) == ["iris:v1"]


async def test_prune_keeps_used_models(caller: Caller, storage: Storage):
    models = caller.about(MODELS)
    await push(models, "m1", "m2", "m3", "m4", name="clf")
    await push(caller, "v1", manifest={"models": ["clf:m1"]})
    await push(caller, "v2", manifest={"models": ["clf:m2"]})
    expected = ["bento iris:v1", "model clf:m1", "model clf:m3"]
    planned = await prune(storage, "--keep", "1", "--dry-run")
    assert (tags(planned), planned["dry_run"]) == (expected, True)
    assert tags(await prune(storage, "--keep", "1")) == expected
    assert await versions(models, "clf") == ["m2", "m4"]
    assert (await caller.get(version="v2"))["models"][0]["version"] == "m2"


async def test_prune_only_models_or_bentos(caller: Caller, storage: Storage):
    await push(caller.about(MODELS), "m1", "m2", "m3", name="clf")
    await push(caller, "v1", "v2", manifest={"models": ["clf:m1"]})
    assert tags(await prune(storage, "--keep", "1", "--only", "models")) == ["model clf:m2"]
    assert tags(await prune(storage, "--keep", "1", "--only", "bentos")) == ["bento iris:v1"]


async def test_prune_by_pattern_keeps_rest(caller: Caller, storage: Storage):
    for name in ("iris", "iris-2", "other"):
        await push(caller, "v1", "v2", name=name)
    pruned = await prune(storage, "--keep", "1", "--repository", "iris*")
    assert tags(pruned) == ["bento iris:v1", "bento iris-2:v1"]
    missed = await run(storage, "prune", "--keep", "1", "--repository", "none*")
    assert missed.exit_code == 3
    assert "matches 'none*'" in missed.stderr


async def test_prune_rechecks_plan(caller: Caller):
    models = caller.about(MODELS)
    await push(models, "m1", "m2", name="clf")
    await push(caller, "v1", "v2", "v3")
    running = caller.registry._running
    assert running is not None
    pruner = Pruner(running.retention, RetentionPolicy(keep=1))
    planned = await pruner.plan()
    assert pruner.n_repositories == 2
    assert [version.tag for version in planned] == ["iris:v1", "iris:v2", "clf:m1"]
    await caller.create(version="v4", manifest={"models": ["clf:m1"]})
    await caller.ok("DELETE", f"{caller.items()}/v3")
    deleted = [version.tag async for batch, _ in pruner.delete(planned) for version in batch]
    assert deleted == ["iris:v1"]
    assert await versions(caller) == ["v2", "v4"]
    assert await versions(models, "clf") == ["m1", "m2"]


async def test_racing_prunes_delete_once(caller: Caller):
    await push(caller, *(f"v{number}" for number in range(8)))
    pruned = await asyncio.gather(*(prune_at(caller, RetentionPolicy(keep=2), hours=1) for _ in range(3)))
    assert sorted(itertools.chain(*pruned)) == [f"iris:v{number}" for number in range(6)]
    assert (await caller.ok("GET", "/bento_repositories/iris"))["n_bentos"] == 2


async def test_prune_works_in_batches(caller: Caller, storage: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention, "_BATCH", 10)
    running = caller.registry._running
    assert running is not None
    await caller.create()
    for number in range(24):
        await caller.create(version=f"n{number}")
    pruner = Pruner(running.retention, RetentionPolicy(older_than=1), datetime.now(timezone.utc) + timedelta(days=2))
    planned = await pruner.plan()
    assert {version.size for version in planned} == {0}  # no bytes were uploaded
    batches = [len(batch) async for batch, _ in pruner.delete(planned)]
    assert batches == [10, 10, 5]
    assert (await caller.list())["total"] == 0


@pytest.mark.parametrize("arguments", [{}, {"keep": 0}, {"older_than": 0.0}, {"older_than": 4e9}])
def test_invalid_policy_is_refused(arguments: Any):
    with pytest.raises(ConfigError):
        RetentionPolicy(**arguments)
    assert RetentionPolicy(keep=1, older_than=retention.MAX_AGE, item_types=(BENTO, MODEL)).keep == 1


# The bytes


async def test_prune_leaves_no_bytes(caller: Caller, storage: Storage, stored_files: Stored):
    await push(caller, "v1", "v2")
    if stored_files.storage == "disk":
        await caller.registry.close()
    assert (await prune(storage, "--keep", "1"))["waiting_bytes"] == 0
    assert stored_files.has_count(disk=1, s3=1)
    if stored_files.storage == "disk":
        await caller.registry.start()
    assert (await caller.download("v2")).body == DATA
    assert json.loads((await run(storage, "usage", "--json")).stdout)["waiting_bytes"] == 0


@disk_only
async def test_prune_counts_bytes_it_leaves(caller: Caller, storage: Storage, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    await push(caller, "v1", "v2")
    await caller.registry.close()
    monkeypatch.setattr("async_bento.registry.blobs.disk_files.DiskFiles.delete", fail)
    assert (await prune(storage, "--keep", "1"))["waiting_bytes"] == 1_000


@disk_only
async def test_prune_keeps_open_downloads(caller: Caller, storage: Storage, stored_files: Stored):
    await push(caller, "v1", "v2")
    url = await caller.get_url("v1")
    assert (await prune(storage, "--keep", "1"))["waiting_bytes"] == 1_000
    assert (await caller.download("v1")).status == 404
    assert (await caller.bare("GET", url)).body == DATA
    assert json.loads((await run(storage, "usage", "--json")).stdout)["waiting_bytes"] == 1_000
    await clean_up(caller, hours=2)
    assert len(stored_files()) == 1
    assert (await caller.bare("GET", url)).status == 404


@disk_only
async def test_killed_prune_is_consistent(caller: Caller, storage: Storage, stored_files: Stored):
    await push(caller, "v1", "v2")
    assert await prune_at(caller, RetentionPolicy(keep=1), hours=1) == ["iris:v1"]
    await clean_up(caller, hours=2)  # nobody has removed the bytes
    assert len(stored_files()) == 1
    assert (await caller.download("v2")).body == DATA


# The command


@disk_only
async def test_prune_prints_total(caller: Caller, storage: Storage):
    await push(caller, "v1", "v2", "v3")
    await push(caller.about(MODELS), "m1", "m2", name="clf")
    dry = await run(storage, "prune", "--keep", "1", "--dry-run")
    assert dry.stdout.splitlines() == [
        "Would delete bento iris:v1: 1000 B.",
        "Would delete bento iris:v2: 1000 B.",
        "Would delete model clf:m1: 1000 B.",
    ]
    assert dry.stderr == "Would delete 2 bentos and 1 model, 2.9 KiB.\n"
    assert await versions(caller) == ["v1", "v2", "v3"]
    done = await run(storage, "prune", "--keep", "1", "--yes")
    assert done.stdout == dry.stdout.replace("Would delete", "Deleted")
    assert done.stderr == (
        "Deleted 2 bentos and 1 model, 2.9 KiB. The registry removes their bytes within two hours.\n"
    )
    again = await run(storage, "prune", "--keep", "1")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "Nothing to delete.\n")


@disk_only
async def test_prune_without_tty_needs_yes(caller: Caller, storage: Storage, monkeypatch: pytest.MonkeyPatch):
    await push(caller, *(f"v{number}" for number in range(13)))
    refused = await run(storage, "prune", "--keep", "1")
    assert refused.exit_code == 2
    assert "Pass --yes." in refused.stderr
    monkeypatch.setattr("async_bento.cli.confirm._can_ask", lambda: True)
    invoked = ["registry", "prune", *arguments(storage), "--keep", "1"]
    asked = await asyncio.to_thread(make_runner().invoke, main, invoked, input="n\n")
    assert asked.exit_code == 1
    assert "bento iris:v9" in asked.stderr
    assert "bento iris:v10" not in asked.stderr
    assert "and 2 more; --dry-run lists all." in asked.stderr
    assert f"Delete 12 bentos, 11.7 KiB from the registry in {storage('registry')['root']}?" in asked.stderr
    asked = await asyncio.to_thread(make_runner().invoke, main, [*invoked[:-1], "3"], input="n\n")
    assert "bento iris:v9" in asked.stderr
    assert "more" not in asked.stderr
    assert len(await versions(caller)) == 13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Pass --keep, --older-than or both."),
        (["--keep", "0"], "0 is not in the range x>=1"),
        (["--older-than", "30"], "'30' is no age. Use hours, days or weeks, like 12h, 30d or 2w."),
        (["--older-than", "0d"], "'0d' is no age."),
        (["--older-than", "36501d"], "at most 100 years"),
    ],
)
def test_invalid_conditions_fail(tmp_path: Path, options: list[str], message: str):
    result = make_runner().invoke(main, ["registry", "prune", "--root", str(tmp_path), *options])
    assert result.exit_code == 2
    assert message in result.stderr


# The scheduled policy


async def test_cleanup_prunes_by_policy(serve: Serve, stored_files: Stored, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "async_bento.registry")
    caller = await serve(prune_keep=1, prune_older_than=1800.0)
    await push(caller, "v1", "v2")
    await clean_up(caller, hours=0.4)
    assert await versions(caller) == ["v1", "v2"]
    await clean_up(caller, hours=0.6)
    assert "deleted bento iris:v1, by the retention policy" in caplog.text
    assert await versions(caller) == ["v2"]
    assert stored_files.has_count(disk=2, s3=2)
    await clean_up(caller, hours=1.1)
    assert stored_files.has_count(disk=1, s3=1)


def test_longest_age_is_allowed(tmp_path: Path):
    result = make_runner().invoke(main, ["registry", "prune", "--root", str(tmp_path), "--older-than", "36500d"])
    assert "it holds no registry" in result.stderr


def test_registry_validates_policy(tmp_path: Path):
    with pytest.raises(ConfigError, match="Keep at least one"):
        LocalRegistry(tmp_path, prune_keep=0)
    with pytest.raises(ConfigError, match="at most 100 years"):
        LocalRegistry(tmp_path, prune_older_than=-1.0)


# Space


async def test_usage_shows_largest_first(caller: Caller, storage: Storage):
    await push(caller, "v1", size=200)
    assert (await run(storage, "usage")).stderr == "1 version, 200 B.\n"
    await push(caller, "v2", size=200)
    await caller.create(version="v3")
    await push(caller.about(MODELS), "m1", name="clf", size=900)
    await caller.ok("POST", "/bento_repositories", json={"name": "empty", "description": ""})
    assert json.loads((await run(storage, "usage", "--json")).stdout) == {
        "repositories": [
            {"kind": "model", "name": "clf", "n_versions": 1, "size_bytes": 900},
            {"kind": "bento", "name": "iris", "n_versions": 3, "size_bytes": 400},
            {"kind": "bento", "name": "empty", "n_versions": 0, "size_bytes": 0},
        ],
        "size_bytes": 1_300,
        "waiting_bytes": 0,
    }
    await push(caller, "v4", size=100)
    await caller.upload(b"new", "v4")
    shown = await run(storage, "usage")
    assert [line.split() for line in shown.stdout.splitlines()] == [
        ["REPOSITORY", "KIND", "VERSIONS", "SIZE"],
        ["clf", "model", "1", "900", "B"],
        ["iris", "bento", "4", "403", "B"],
        ["empty", "bento", "0", "0", "B"],
    ]
    assert shown.stderr == "5 versions, 1.3 KiB. 100 B of replaced and deleted versions wait for removal.\n"
