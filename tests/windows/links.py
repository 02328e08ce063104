"""Imported by each Python of the session: a link fails as it does for most users of Windows.

Wine's CreateSymbolicLink makes nothing and reports success.
"""

from __future__ import annotations

import os
from typing import NoReturn

_PRIVILEGE_NOT_HELD = 1314


def _symlink(source: os.PathLike[str] | str, target: os.PathLike[str] | str, *_: object, **options: object) -> NoReturn:
    message = "A required privilege is not held by the client"
    raise OSError(22, message, os.fspath(source), _PRIVILEGE_NOT_HELD, os.fspath(target))


os.symlink = _symlink
