"""`async-bento registry token` and `registry audit`, on a running registry."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from async_bento.cli import main
from async_bento.cli.registry import shell_actor
from async_bento.registry.directory import _read_or_create_secret
from async_bento.registry.records.audit import AuditLog
from async_bento.registry.records.sql import Records
from async_bento.registry.tokens import Actor
from tests.cli_runner import make_runner
from tests.platforms import IS_WINDOWS
from tests.registry.conftest import MODELS, arguments, clean_up, disk_only

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.conftest import Caller, Storage

TOKEN = re.compile(r"abt_[A-Za-z0-9_-]{43}\n")


async def run(storage: Storage, *command: str) -> Any:
    """Run a command on the registry that is named `registry`."""
    invoked = ["registry", *command, *arguments(storage)]
    return await asyncio.to_thread(make_runner().invoke, main, invoked)


async def done(storage: Storage, *command: str) -> str:
    result = await run(storage, *command)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


async def events(storage: Storage, *options: str) -> list[list[str]]:
    """Return the actors and actions, in the order of time."""
    listed = json.loads(await done(storage, "audit", "--json", *options))
    return [[event["actor"], event["action"], event["kind"], event["name"], event["version"]] for event in listed]


# Tokens


async def test_create_prints_token_only(caller: Caller, storage: Storage):
    result = await run(storage, "token", "create", "ci", "--role", "push")
    assert (result.exit_code, result.stderr) == (0, "")
    assert TOKEN.fullmatch(result.stdout)
    user = await caller.ok("GET", "/auth/current", token=result.stdout.strip())
    assert user["name"] == "ci"


async def test_vv_logs_no_library(caller: Caller, storage: Storage, caplog: pytest.LogCaptureFixture):
    """The drivers of databases and botocore log digests and session tokens for debugging."""
    await done(storage, "token", "create", "ci", "--role", "push", "-vv")
    assert not [record for record in caplog.records if not record.name.startswith("async_bento")]


async def test_token_list_shows_no_secret(caller: Caller, storage: Storage):
    secret = (
        await done(storage, "token", "create", "ci", "--role", "read", "--prefix", "iris", "--expires", "2d")
    ).strip()
    await caller.ok("GET", "/auth/current", token=secret)
    table = await done(storage, "token", "list")
    assert secret not in table
    head, admin, ci = table.splitlines()
    assert head.split()[:4] == ["NAME", "ROLE", "PREFIX", "CREATED"]
    assert (admin.split()[:3], ci.split()[:3]) == (["admin", "admin", "-"], ["ci", "read", "iris"])
    listed = json.loads(await done(storage, "token", "list", "--json"))[1]
    assert (listed["name"], listed["role"], listed["prefix"]) == ("ci", "read", "iris")
    expiry = datetime.fromisoformat(listed["expires_at"]) - datetime.now(timezone.utc)
    assert timedelta(days=1, hours=23) < expiry <= timedelta(days=2)
    assert datetime.fromisoformat(listed["last_used_at"]) <= datetime.now(timezone.utc)


async def test_revoked_token_is_refused(caller: Caller, storage: Storage):
    secret = (await done(storage, "token", "create", "ci", "--role", "push")).strip()
    await caller.ok("GET", "/auth/current", token=secret)
    result = await run(storage, "token", "revoke", "ci")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Revoked the token ci.\n")
    refused = await caller.api("GET", "/auth/current", token=secret)
    assert refused.status == 403
    assert refused.json["message"].startswith("access denied: the API token is unknown, was revoked or has expired.")


async def test_rotation_keeps_old_token(caller: Caller, storage: Storage):
    old = (await done(storage, "token", "create", "ci", "--role", "push")).strip()
    new = (await done(storage, "token", "rotate", "ci", "--overlap", "1h")).strip()
    assert new != old
    for secret in (old, new):
        await caller.ok("GET", "/auth/current", token=secret)
    kept, added = json.loads(await done(storage, "token", "list", "--json"))[1:]
    assert added["expires_at"] is None
    left = datetime.fromisoformat(kept["expires_at"]) - datetime.now(timezone.utc)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    await done(storage, "token", "revoke", "ci")
    for secret in (old, new):
        assert (await caller.api("GET", "/auth/current", token=secret)).status == 403
    assert [event[1] for event in await events(storage, "--name", "ci")] == ["create", "rotate", "revoke"]


async def test_create_on_terminal_explains(caller: Caller, storage: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("async_bento.cli.token.terminal_width", lambda: 80)
    first, last = (await done(storage, "token", "create", "ci", "--role", "push")).splitlines()
    assert first == "Created the token ci with the role push. The token is shown only now:"
    assert TOKEN.fullmatch(f"{last}\n")


@disk_only
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["token", "create", "ci"], 2, "Missing option '--role'"),
        (["token", "create", "ci", "--role", "write"], 2, "'write' is not one of 'read', 'push', 'admin'"),
        (["token", "create", "no spaces", "--role", "read"], 2, "'no spaces' is no name of a token."),
        (["token", "create", "admin", "--role", "read"], 2, "cannot create the token admin: it exists."),
        (["token", "revoke", "ci"], 3, "there is no token ci. List the tokens with: async-bento registry token list"),
        (["token", "rotate", "ci"], 3, "there is no token ci."),
        (["token", "rotate", "ci", "--overlap", "soon"], 2, "'soon' is no age."),
        (["token", "create", "ci", "--role", "read", "--expires", "999999w"], 2, "at most 100 years"),
        (["audit", "--since", "999999w"], 2, "at most 100 years"),
    ],
)
async def test_invalid_token_options_fail(
    caller: Caller, storage: Storage, command: list[str], code: int, message: str
):
    result = await run(storage, *command)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no user"), ImportError("no pwd")])
def test_actor_without_user_name(error: Exception, monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise error

    monkeypatch.setattr("getpass.getuser", fail)
    assert shell_actor() == Actor("shell")


def test_command_needs_registry(tmp_path: Path):
    result = make_runner().invoke(main, ["registry", "token", "list"])
    assert result.exit_code == 2
    assert "Pass --root or --database." in result.stderr
    result = make_runner().invoke(main, ["registry", "token", "list", "--root", str(tmp_path)])
    assert result.exit_code == 2
    assert "it holds no registry. Pass the directory of one." in result.stderr
    assert [*tmp_path.iterdir()] == []


# The audit log


async def test_audit_shows_who_did_what(caller: Caller, storage: Storage):
    token = (await done(storage, "token", "create", "ci", "--role", "admin")).strip()
    model = caller.about(MODELS)
    for one in (caller, model):
        await one.create()
        for _ in range(2):
            assert (await one.upload(b"bytes", token=token)).status == 200
    await caller.ok("PATCH", f"{caller.items()}/v1/presign_download_url", token=token)
    assert (await model.download()).status == 200
    assert (await caller.api("DELETE", f"{caller.items()}/v1", token=token)).status == 200
    await done(storage, "token", "revoke", "ci")
    found = await events(storage)
    shell = found[1][0]
    assert shell.startswith("shell")
    assert found == [
        ["registry", "create", "token", "admin", ""],
        [shell, "create", "token", "ci", ""],
        ["ci", "push", "bento", "iris", "v1"],
        ["ci", "replace", "bento", "iris", "v1"],
        ["ci", "push", "model", "iris", "v1"],
        ["ci", "replace", "model", "iris", "v1"],
        ["ci", "pull", "bento", "iris", "v1"],
        ["admin", "pull", "model", "iris", "v1"],
        ["ci", "delete", "bento", "iris", "v1"],
        [shell, "revoke", "token", "ci", ""],
    ]
    assert await events(storage, "--action", "delete") == [found[8]]
    assert await events(storage, "--name", "ci") == [found[1], found[9]]
    assert await events(storage, "--limit", "2") == found[8:]
    assert await events(storage, "--since", "1h", "--limit", "0") == found
    table = (await done(storage, "audit", "--action", "delete")).splitlines()
    assert table[0].split() == ["TIME", "(UTC)", "TOKEN", "ACTION", "KIND", "NAME", "ADDRESS"]
    assert table[1].split()[2:] == ["ci", "delete", "bento", "iris:v1", "127.0.0.1"]


async def test_audit_shows_pruned_versions(caller: Caller, storage: Storage):
    for version in ("v1", "v2"):
        await caller.create(version=version)
        assert (await caller.upload(b"bytes", version)).status == 200
    await done(storage, "prune", "--keep", "1", "--yes")
    ((actor, *event),) = await events(storage, "--action", "delete")
    assert actor.startswith("shell")
    assert event == ["delete", "bento", "iris", "v1"]


async def test_audit_omits_failed_replace(caller: Caller, storage: Storage):
    await caller.create()
    assert (await caller.upload(b"bytes")).status == 200
    await caller.ok("PATCH", f"{caller.items()}/v1/start_upload")
    await caller.finish()  # a client whose forced push was interrupted: the old bytes are complete
    assert [event[1] for event in await events(storage, "--name", "iris")] == ["push"]


async def test_audit_counts_ranges_once(caller: Caller, storage: Storage):
    await caller.create()
    assert (await caller.upload(b"0123456789")).status == 200
    for range_ in ("bytes=0-4", "bytes=5-9"):
        path = f"{caller.items()}/v1/download"
        assert (await caller.api("GET", path, headers={"Range": range_})).status == 206
    assert [event[1] for event in await events(storage, "--name", "iris")] == ["push", "pull"]


async def test_audit_failure_allows_pull(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, storage: Storage, caplog: pytest.LogCaptureFixture
):
    from async_bento.registry.errors import disk_error

    await caller.create()
    assert (await caller.upload(b"bytes")).status == 200

    async def fail(*_: object) -> None:
        raise disk_error(OSError(28, "No space left on device"))

    monkeypatch.setattr(AuditLog, "add_pull", fail)
    assert (await caller.download()).body == b"bytes"
    assert "cannot record the pull of bento iris:v1: the registry's disk is full" in caplog.text


async def test_audit_events_expire(caller: Caller, storage: Storage):
    assert len(await events(storage)) == 1
    await clean_up(caller, hours=24 * 364)
    assert len(await events(storage)) == 1
    await clean_up(caller, hours=24 * 366)
    assert await events(storage) == []


async def test_audit_times_are_inclusive(caller: Caller):
    running = caller.registry._running
    assert running is not None
    audit = AuditLog(running.retention._database)
    (event,) = await audit.list(count=0)
    await audit.remove(event.at)
    assert await audit.list(count=0, since=event.at) == [event]


async def test_pull_records_time(caller: Caller, storage: Storage):
    await caller.create()
    assert (await caller.upload(b"bytes")).status == 200
    running = caller.registry._running
    assert running is not None
    records = Records(running.retention._database)
    from async_bento.registry.item_types import BENTO

    assert (await records.item(BENTO, "iris", "v1")).last_pulled_at is None
    await caller.ok("PATCH", f"{caller.items()}/v1/presign_download_url")
    pulled_at = (await records.item(BENTO, "iris", "v1")).last_pulled_at
    assert pulled_at is not None
    assert datetime.now(timezone.utc) - pulled_at < timedelta(minutes=1)


def test_token_file_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power failure after the database has its digest must not lose the token."""
    synced: list[int] = []
    monkeypatch.setattr("async_bento._core.platform.flush", lambda handle: synced.append(os.fstat(handle).st_size))
    assert _read_or_create_secret(tmp_path / "token", lambda: "secret") == ("secret", True)
    assert synced == [len("secret\n")]


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("content", [None, ""], ids=["missing", "empty"])
def test_token_file_race_has_one_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, has_links: bool
):
    """Another copy of the registry starts while this one creates its token."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def generate() -> str:
        assert _read_or_create_secret(path, lambda: "other") == ("other", True)
        return "mine"

    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    if not has_links:
        monkeypatch.setattr("os.link", refuse)

    token, is_new = _read_or_create_secret(path, generate)

    assert (token, is_new) == (("other", False) if has_links else ("mine", True))
    assert path.read_text() == f"{token}\n"
    assert IS_WINDOWS or path.stat().st_mode & 0o777 == 0o600
    assert [*tmp_path.iterdir()] == [path]
