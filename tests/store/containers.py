"""Runs commands as in a container: in their own root, as any user, with mounts and few variables.

The root is an overlay over that of this machine, whose files are the lower layer, like those of an image.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.platforms import IS_ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROJECT = Path(__file__).parents[2]

ASYNC_BENTO = (sys.executable, "-m", "async_bento")

PROGRAMS = "/opt/container"
"""The directory of `async-bento` in a container."""


@dataclass(frozen=True)
class Mount:
    """A directory of this machine, or a new tmpfs, at a path of a container."""

    path: str
    source: Path | None = None
    is_read_only: bool = False


@dataclass(frozen=True)
class Container:
    """The environment of commands.

    Fields:
        user: The user id and the group id; neither needs a name.
        groups: Further groups, like the `fsGroup` of Kubernetes.
        has_read_only_root: Whether only the mounts can be written.
        has_capabilities: Whether root has the rights of root.
        environment: The variables; there is no `HOME` unless it is here.
        commands: Programs that replace those on the `PATH`: a script by its name.
    """

    user: int = 0
    groups: tuple[int, ...] = ()
    mounts: tuple[Mount, ...] = ()
    has_read_only_root: bool = True
    has_capabilities: bool = True
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    commands: Mapping[str, str] = field(default_factory=dict[str, str])
    umask: int = 0o022

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command, and return its output and exit code."""
        with tempfile.TemporaryDirectory() as directory:
            return subprocess.run(
                ["unshare", "--mount", "sh", "-ec", "\n".join(self._script(Path(directory), command))],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )

    def _script(self, layers: Path, command: Sequence[str]) -> list[str]:
        root = layers / "root"
        options = f"lowerdir=/,upperdir={layers}/upper,workdir={layers}/work"
        lines = [
            # A layer must not be inside another one, so not on the disk of the lower layer.
            f"mount -t tmpfs tmpfs {layers}",
            f"mkdir {layers}/upper {layers}/work {root}",
            f"mount -t overlay overlay -o {options} {root}",
            *(f"mount --rbind /{name} {root}/{name}" for name in ("proc", "dev")),
            *(f"chmod o+x {root}{path}" for path in _closed_directories()),
            f"mkdir -p {root}{PROGRAMS}",
        ]
        for name, text in {"async-bento": f'exec {shlex.join(ASYNC_BENTO)} "$@"', **self.commands}.items():
            program = f"{root}{PROGRAMS}/{name}"
            lines.append(f"printf '%s\\n' {shlex.quote('#!/bin/sh')} {shlex.quote(text)} > {program}")
            lines.append(f"chmod 755 {program}")
        for each in self.mounts:
            at = f"{root}{shlex.quote(each.path)}"
            lines.append(f"mkdir -p {at}")
            source = "-t tmpfs -o mode=1777 tmpfs" if each.source is None else f"--bind {shlex.quote(str(each.source))}"
            lines.append(f"mount {source} {at}")
            for directory in (PROJECT, Path(sys.prefix)):
                if directory.is_relative_to(each.path):  # a checkout in /tmp, which the mount hides
                    hidden = shlex.quote(str(directory))
                    lines.append(f"mkdir -p {root}{hidden}; mount --rbind {hidden} {root}{hidden}")
            if each.is_read_only:
                lines.append(f"mount -o remount,bind,ro {at}")
        if self.has_read_only_root:
            lines.append(f"mount -o remount,ro {root}")
        variables = {
            "PATH": f"{PROGRAMS}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests" / "loopback")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.environment,
        }
        ids = ["--reuid", str(self.user), "--regid", str(self.user)]
        ids += ["--groups", ",".join(map(str, self.groups))] if self.groups else ["--clear-groups"]
        ids += [] if self.has_capabilities else ["--inh-caps=-all", "--bounding-set=-all"]
        as_user = ["setpriv", *ids, "env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        lines.append(f"umask {self.umask:03o}")
        lines.append(f"exec chroot {root} {shlex.join([*as_user, *command])}")
        return lines


def _closed_directories() -> list[Path]:
    """Return the parents of Python and of the package that only their owner can enter."""
    ways = [Path(os.path.realpath(sys.executable)), Path(sys.prefix, "lib"), PROJECT / "tests"]
    parents = {parent for way in ways for parent in way.parents}
    return sorted(parent for parent in parents if not parent.stat().st_mode & 0o001)


@functools.cache
def _obstacle() -> str | None:
    """Return the reason why no container can run here; None if one can."""
    if not IS_ROOT:
        return "only root mounts, and acts as several users"
    try:
        tried = Container(user=12001).run(sys.executable, "-c", "import async_bento")
    except FileNotFoundError as error:
        return f"there is no {error.filename}"
    return None if tried.returncode == 0 else f"this machine does not allow it: {tried.stderr.strip()[-200:]}"


@pytest.fixture(scope="session")
def containers() -> None:
    """Skip a test where no container can run."""
    if reason := _obstacle():
        pytest.skip(f"no containers: {reason}")
