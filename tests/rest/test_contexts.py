"""Writes of `.yatai.yaml`: atomic, mode 600, with the fields of other programs."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import filelock
import pytest
import yaml
from pydantic import SecretStr

from async_bento import ConfigError
from async_bento.rest import contexts
from async_bento.rest.contexts import Context, read_contexts, store_context, use_context

if TYPE_CHECKING:
    from pathlib import Path

# What BentoML 1.4.39 writes for PROD and LAB, byte for byte.
WRITTEN_BY_BENTOML = r"""contexts:
- api_token: tk-prod
  email: ada@example.com
  endpoint: https://prod.example
  name: prod
- api_token: tk-lab
  email: null
  endpoint: http://lab.example:3000
  name: "l\xE4b"
current_context_name: "l\xE4b"
"""


def made(name: str, endpoint: str, token: str, email: str | None = None) -> Context:
    return Context(name=name, endpoint=endpoint, api_token=SecretStr(token), email=email)


PROD = made("prod", "https://prod.example", "tk-prod", "ada@example.com")
LAB = made("läb", "http://lab.example:3000", "tk-lab")


@pytest.fixture
def path(home: Path) -> Path:
    return home / ".yatai.yaml"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_file_matches_bentoml_bytes(path: Path) -> None:
    store_context(path, PROD)
    store_context(path, LAB)
    assert path.read_bytes() == WRITTEN_BY_BENTOML.encode()


def test_contexts_round_trip(path: Path) -> None:
    store_context(path, PROD)
    store_context(path, LAB)
    read = read_contexts(path)
    assert (read.contexts, read.current_context_name) == ([PROD, LAB], "läb")


def test_store_creates_missing_directories(tmp_path: Path) -> None:
    path = tmp_path / "new" / "home" / ".yatai.yaml"
    store_context(path, PROD)
    assert read_contexts(path).contexts == [PROD]


def test_store_replaces_same_name(path: Path) -> None:
    for context in (PROD, LAB, made("prod", "https://new.example", "tk-new")):
        store_context(path, context)
    read = read_contexts(path)
    assert [(one.name, one.endpoint, one.email) for one in read.contexts] == [
        ("prod", "https://new.example", None),
        ("läb", "http://lab.example:3000", None),
    ]
    assert read.current_context_name == "prod"
    assert "tk-prod" not in path.read_text()


def test_store_keeps_foreign_fields(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(
        "theirs: {since: 2024-05-06}\ncontexts:\n"
        "- {name: prod, endpoint: 'https://prod.example', api_token: t, role: admin}\n"
        "- {name: other, endpoint: 'https://other.example', api_token: t, role: guest}\n"
    )
    theirs = yaml.safe_load(path.read_text())["theirs"]
    store_context(path, PROD)
    use_context(path, "other")
    document = yaml.safe_load(path.read_text())
    assert document["theirs"] == theirs
    assert [one["role"] for one in document["contexts"]] == ["admin", "guest"]
    assert document["contexts"][0]["api_token"] == "tk-prod"


@pytest.mark.posix("file modes")
def test_contexts_file_has_mode_600(path: Path) -> None:
    store_context(path, PROD)
    assert mode(path) == 0o600


@pytest.mark.posix("file modes")
def test_write_restores_mode_600(path: Path) -> None:
    store_context(path, PROD)
    path.chmod(0o644)
    use_context(path, "prod")
    assert mode(path) == 0o600


@pytest.mark.posix("file modes")
def test_mode_600_from_first_byte(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_the_first_byte: list[tuple[int, int]] = []
    fdopen = os.fdopen

    def watched(descriptor: int, mode: str) -> object:
        status = os.fstat(descriptor)
        before_the_first_byte.append((stat.S_IMODE(status.st_mode), status.st_size))
        return fdopen(descriptor, mode)

    monkeypatch.setattr("os.fdopen", watched)
    before = os.umask(0)
    try:
        store_context(path, PROD)
    finally:
        os.umask(before)
    assert before_the_first_byte == [(0o600, 0)]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EACCES, "Permission denied. Set BENTOML_HOME to a directory that this user can write."),
    ],
)
def test_failed_store_keeps_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    store_context(path, PROD)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("async_bento.rest.contexts.os.fsync", fail)
    with pytest.raises(ConfigError) as caught:
        store_context(path, LAB)
    assert str(caught.value) == f"cannot write {path}: {reason}"
    assert path.read_bytes() == before
    assert {entry.name for entry in path.parent.iterdir()} <= {".yatai.yaml", ".yatai.yaml.lock"}


@pytest.mark.parametrize("text", ["contexts: [{api_token: tk-5ecret", "tk-5ecret", "contexts: [{name: a}]"])
def test_store_keeps_invalid_file(text: str, path: Path) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"\.yatai\.yaml"):
        store_context(path, PROD)
    assert path.read_text() == text


def test_store_keeps_symlink(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "yatai.yaml"
    store_context(real, PROD)
    path.parent.mkdir()
    path.symlink_to(real)
    store_context(path, LAB)
    assert path.is_symlink()
    assert [one.name for one in read_contexts(real).contexts] == ["prod", "läb"]
    assert mode(real) == 0o600


def test_lock_serializes_threads(path: Path) -> None:
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        store_context(path, made(f"c{number}", "https://r.example", "t"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.name for one in read_contexts(path).contexts) == [f"c{number}" for number in range(8)]


def test_lock_timeout_is_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_context(path, PROD)
    monkeypatch.setattr(contexts, "LOCK_TIMEOUT", 0.05)
    with (
        filelock.FileLock(path.with_name(".yatai.yaml.lock")),
        pytest.raises(ConfigError, match=r"another process has held its lock for 0\.05 s\."),
    ):
        store_context(path, LAB)


def test_file_system_without_locks_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr("filelock.FileLock._acquire", refuse)
    with pytest.raises(ConfigError, match=r"cannot write .*: FileSystem does not appear to support flock"):
        store_context(path, PROD)


def test_use_context_sets_current(path: Path) -> None:
    store_context(path, PROD)
    store_context(path, LAB)
    assert use_context(path, "prod") == PROD
    assert read_contexts(path).current_context_name == "prod"


def test_use_unknown_context_raises(path: Path) -> None:
    store_context(path, PROD)
    before = path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        use_context(path, "staging")
    assert str(caught.value) == (
        f"no context 'staging' in {path}: the file has only prod. "
        "Use one of these, or run `async-bento login --name staging`."
    )
    assert path.read_bytes() == before


def test_fifo_does_not_block(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    messages: list[str] = []

    def read() -> None:
        try:
            read_contexts(path)
        except ConfigError as error:
            messages.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(30)
    assert messages == [f"cannot read {path}: not a regular file"]
