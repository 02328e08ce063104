"""A bento from `bentoml build`, and fixtures for its pushes and pulls.

Without bentoml in the Python of the tests, these tests are not collected. A session that selects only them then fails,
since pytest finds no tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.interop.homes import DRIVER, PART_SIZE, Home, Registry
from tests.interop.project import MODELS, write_project
from tests.interop.recorder import recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

if find_spec("bentoml") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Home:
    """A home with `my_service:v1`, built by bentoml, and its models. Do not change it: use the copy `with_bento`."""
    home = Home(tmp_path_factory.mktemp("built"))
    write_project(home.path / "project")
    for command in (
        ["-c", MODELS, str(PART_SIZE + 123)],  # two parts
        ["-m", "bentoml", "build", "--version", "v1", "project"],
    ):
        subprocess.run([sys.executable, *command], cwd=home.path, env=home.environment(), check=True, timeout=60)

    # `bentoml build` copies no empty directories, but a bento may have one.
    (home.bentos.path / "my_service" / "v1" / "src" / "empty").mkdir()
    return home


@pytest.fixture(scope="session", autouse=True)
def driver(tmp_path_factory, refused_anywhere) -> Iterator[None]:
    """Start the driver, which imports the real bentoml once and runs the calls of all tests."""
    home = Home(tmp_path_factory.mktemp("driver"))
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:  # a socket needs a short path
        path = Path(directory, "socket")
        process = subprocess.Popen(
            [sys.executable, DRIVER, path],
            cwd=home.path,
            env=home.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            while not path.exists():
                assert process.poll() is None
                time.sleep(0.05)
            patch.setattr(Home, "driver", path, raising=False)
            yield
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def there(tmp_path) -> Home:
    """An empty home."""
    return Home(tmp_path / "there")


@pytest.fixture
def with_bento(built, tmp_path) -> Home:
    """A copy of the home `built`, for one test."""
    path = tmp_path / "with_bento"
    for name in ("bentos", "models", "project"):
        shutil.copytree(built.path / name, path / name, symlinks=True)
    return Home(path)


@pytest.fixture
def transmission() -> str:
    """The transmission strategy; a test of all strategies parametrizes this name."""
    return "presigned_url"


@pytest.fixture
async def registry(tmp_path, transmission):
    """A running registry."""
    registry = Registry(tmp_path / "registry", transmission)
    await registry.open()
    yield registry
    await registry.close()


@pytest.fixture
async def theirs(tmp_path):
    """A recorded registry for bentoml."""
    async with recorded(tmp_path / "theirs") as registry:
        yield registry


@pytest.fixture
async def ours(tmp_path):
    """A recorded registry for async-bento."""
    async with recorded(tmp_path / "ours") as registry:
        yield registry
