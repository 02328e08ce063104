"""The real huggingface_hub, a small Hub on this machine, and a registry behind a fault proxy."""

from __future__ import annotations

import os

# huggingface_hub reads these variables once, at its import.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_SYMLINKS_WARNING"] = "1"  # on Windows, without the privilege

from typing import TYPE_CHECKING

import pytest
from anyio.from_thread import start_blocking_portal
from huggingface_hub import constants, utils

from tests.integrations.huggingface.hub import Hub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HAS_BYTE_BARS = hasattr(utils, "close_session")
"""Whether huggingface_hub is 1.0 or later, which reports the bytes of a running download and can stop it."""

close_sessions = utils.close_session if HAS_BYTE_BARS else utils.reset_sessions


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no token of the user."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "BENTOML_HF_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    cache = tmp_path / "hf" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64 * 1024)  # the update interval of its bars
    return cache


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub, and the variable that names it."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub
    close_sessions()


@pytest.fixture
def set_offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Turn huggingface_hub's offline mode on or off."""

    def change(offline: bool) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        close_sessions()

    return change
