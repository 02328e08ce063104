"""A disk of a known size, which can be filled up."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = ["unshare", "--map-root-user", "--mount", "--propagation", "private"]
"""What gives a command mounts of its own; Linux lets everyone do so, where nobody has forbidden it."""


def can_mount() -> bool:
    """Whether a process may have mounts of its own here."""
    if sys.platform != "linux":
        return False
    try:
        return not subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode
    except OSError:
        return False


class Disk:
    """A directory, with a disk of its own where there can be one.

    Args:
        path: The directory.
        size: How much there is room for, in bytes; None for as much as there is, on a disk that is never filled.
    """

    def __init__(self, path: Path, size: int | None) -> None:
        path.mkdir(parents=True)
        self.path = path
        self._ballast = path / "ballast"
        self._mounted = size is not None
        if size is not None:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "chaos", path], check=True)

    def fill(self, left: int) -> bool:
        """Take all room but some.

        Args:
            left: What is left, in bytes.

        Returns:
            Whether it was done.
        """
        if not self._mounted:
            return False
        there = os.statvfs(self.path)
        taken = there.f_bavail * there.f_frsize - left
        if taken <= 0:
            return False
        with self._ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), self._ballast.stat().st_size, taken)
        return True

    def relieve(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        """End it, with all that is on it."""
        if self._mounted:
            subprocess.run(["umount", "--lazy", self.path], check=True)
