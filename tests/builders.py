"""Small bentos and models on disk, and the content of directories."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

KiB = 1024
MiB = 1024 * KiB

BUILT = "2024-05-06 07:08:09.000010"


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Random bytes, the same for the same seed; no two parts of them are equal."""
    return Random(seed).randbytes(size)


def make_bento(
    home: Path,
    tag: str = "svc:v1",
    files: Mapping[str, bytes] | None = None,
    *,
    models: Iterable[object] = (),
    built: str = BUILT,
    **fields: object,
) -> Path:
    """Make a bento in the store of a home; its models are only named."""
    name, _, version = tag.partition(":")
    info = {
        "service": "service:Svc",
        "name": name,
        "version": version,
        "bentoml_version": "1.4.39",
        "creation_time": built,
        "spec": 2,
        "models": [{"tag": model} if isinstance(model, str) else model for model in models],
    }
    directory = home / "bentos" / name / version
    _fill(directory, {"bento.yaml": yaml.safe_dump(info | fields).encode(), **(files or {"src/service.py": b"pass\n"})})
    return directory


def make_model(
    home: Path, tag: str = "mod:m1", files: Mapping[str, bytes] | None = None, *, built: str = BUILT, **fields: object
) -> Path:
    """Make a model in the store of a home."""
    name, _, version = tag.partition(":")
    info = {
        "name": name,
        "version": version,
        "module": "",
        "labels": {},
        "metadata": {},
        "context": {"framework_name": "", "framework_versions": {}, "bentoml_version": "1.4.39"},
        "api_version": "v1",
        "creation_time": built,
    }
    directory = home / "models" / name / version
    _fill(
        directory, {"model.yaml": yaml.safe_dump(info | fields).encode(), **(files or {"weights": random_bytes(1000)})}
    )
    return directory


def _fill(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def contents(directory: Path) -> dict[str, bytes | str | None]:
    """Return the bytes of each file, the target of each link, and None for each directory, by path."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            found[name] = path.readlink().as_posix()
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def left_in_scratch(home: Path, *, kept: bool = True) -> list[str]:
    """Return the files below a home's `tmp` except locks; with `kept`, also those of a resume."""
    tmp = home / "tmp"
    if not tmp.is_dir():
        return []
    others = ("async-bento-lock-",) if kept else ("async-bento-lock-", "async-bento-kept-")
    return [name for path in tmp.rglob("*") if not (name := path.relative_to(tmp).as_posix()).startswith(others)]
