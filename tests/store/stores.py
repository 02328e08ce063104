"""Bentos and models for the tests of the store, and processes that use a store."""

from __future__ import annotations

import subprocess
import sys

import yaml

OLD, MIDDLE, NEW = "2024-01-01T00:00:00+00:00", "2024-02-01T00:00:00+00:00", "2024-03-01T00:00:00+00:00"


def fill(path, tag, created=OLD, text="", **fields):
    """Write a bento into a directory, with a file that contains `text`."""
    name, version = tag.split(":")
    path.mkdir(parents=True, exist_ok=True)
    info = {"service": "s:S", "name": name, "version": version, "creation_time": created, **fields}
    (path / "bento.yaml").write_text(yaml.safe_dump(info))
    (path / "text").write_text(text)


def fill_model(path, tag, size=0):
    """Write a model with `size` bytes of weights into a directory."""
    name, version = tag.split(":")
    path.mkdir(parents=True, exist_ok=True)
    context = {"framework_name": "", "framework_versions": {}}
    info = {"name": name, "version": version, "module": "", "api_version": "v1", "context": context}
    (path / "model.yaml").write_text(yaml.safe_dump({**info, "creation_time": OLD}))
    (path / "weights").write_bytes(bytes(size))


def put(store, tag, created=OLD, text="", *, replace=False, **fields):
    """Stage and commit a bento, as a pull does."""
    with store.stage() as staged:
        fill(staged, tag, created, text, **fields)
        return store.commit(staged, tag, replace=replace)


def latest(store, name="iris"):
    """Return the contents of a `latest` file."""
    return (store.path / name / "latest").read_text()


def staging_of(store):
    """List the entries of the staging area, without the locks."""
    return sorted(
        path.name for path in (store.path.parent / "tmp").iterdir() if not path.name.startswith("async-bento-lock-")
    )


def spawn(script, *arguments):
    """Start Python with a script."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
