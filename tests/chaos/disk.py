"""A disk of a fixed size that a test can fill."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = ["unshare", "--map-root-user", "--mount", "--propagation", "private"]
"""Runs a command in its own mount namespace; Linux allows that to every user unless an administrator forbids it."""


def can_mount() -> bool:
    """Whether a process may have its own mounts."""
    if sys.platform != "linux":
        return False
    try:
        return not subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode
    except OSError:
        return False


class Disk:
    """A directory, on its own disk if the process may mount one.

    Args:
        path: The directory.
        size: The size of the disk, in bytes; None for a plain directory, which `fill` leaves alone.
    """

    def __init__(self, path: Path, size: int | None) -> None:
        path.mkdir(parents=True)
        self.path = path
        self._ballast = path / "ballast"
        self._mounted = size is not None
        if size is not None:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "chaos", path], check=True)

    def fill(self, left: int) -> bool:
        """Fill the disk.

        Args:
            left: The remaining free space, in bytes.

        Returns:
            Whether the disk was filled.
        """
        if not self._mounted:
            return False
        space = os.statvfs(self.path)
        taken = space.f_bavail * space.f_frsize - left
        if taken <= 0:
            return False
        with self._ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), self._ballast.stat().st_size, taken)
        return True

    def relieve(self) -> None:
        """Free the filled space."""
        self._ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Unmount the disk; its content is lost."""
        if self._mounted:
            subprocess.run(["umount", "--lazy", self.path], check=True)
