"""The Windows Python of the session, for tests that run on Linux."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.windows.wine import WindowsPython

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def windows() -> Iterator[WindowsPython]:
    """`nox -s windows` makes it and names its directory."""
    if "WINDOWS_PYTHON" not in os.environ:
        pytest.skip("needs the Python of `nox -s windows`")
    python = WindowsPython(Path(os.environ["WINDOWS_PYTHON"]))
    with python.started():
        yield python
