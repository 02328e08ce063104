"""async-bento and each release of BentoML pull each other's pushes, with each strategy; see `commands.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_bento.registry import LocalRegistry
from tests.interop.homes import OTHERS, Home, tree

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

every_release = pytest.mark.parametrize("python", OTHERS, ids=OTHERS.values())

STRATEGIES = {"proxy": "proxy", "auto": "auto"}
MODELS = ("presigned_url:v1", "proxy:v1", "auto:v1")
ITEMS = ("bentos/greeter/v1", *(f"models/{tag.replace(':', '/')}" for tag in MODELS))
FIRST_SUPPORTED = (1, 3, 19)
"""The first tested release that `accelerate` supports."""


def is_supported(python: str) -> bool:
    release = OTHERS[python].partition("-")[2]
    return tuple(int(part) for part in release.split(".")[:3]) >= FIRST_SUPPORTED


def home(tmp_path: Path, name: str) -> Home:
    return Home(tmp_path / name)


@every_release
async def test_release_round_trip(tmp_path: Path, python: str) -> None:
    """The comparison ignores modes, since BentoML sets none when it pulls."""
    theirs, ours = home(tmp_path, "theirs"), home(tmp_path, "ours")
    async with LocalRegistry(tmp_path / "first", strategies=STRATEGIES) as registry:
        await theirs.commands("both", registry, python=python)
        async with ours.api(registry) as api:
            await api.pull("greeter:v1", with_models=True)
            for tag in MODELS:
                await api.models.pull(tag)
    for item in ITEMS:
        assert tree(ours.path / item, modes=False) == tree(theirs.path / item, modes=False)

    async with LocalRegistry(tmp_path / "second", strategies=STRATEGIES) as registry:
        async with ours.api(registry) as api:
            await api.push("greeter:v1")
            for tag in MODELS:
                await api.models.push(tag)
        await theirs.commands("pull", registry, python=python)
    for item in ITEMS:
        assert tree(theirs.path / item, modes=False) == tree(ours.path / item, modes=False)


@every_release
async def test_accelerate_checks_release(tmp_path: Path, python: str) -> None:
    theirs = home(tmp_path, "theirs")
    if is_supported(python):
        async with LocalRegistry(tmp_path / "registry", strategies=STRATEGIES) as registry:
            await theirs.commands("accelerated", registry, python=python)
        return
    script = """
import warnings
from async_bento.integrations.bentoml import accelerate
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert not accelerate()
print(*(warning.message for warning in caught if "accelerate" in str(warning.message)))
"""
    output = await theirs.python("-c", script, interpreter=python)
    assert "cannot accelerate bentoml 1." in output
    assert output.endswith(". Use AsyncBentoAPI or BentoAPI instead.\n")
