"""A pytest plugin: a registry of one's own for a test.

Switch it on in the `conftest.py` at the root of your tests:

    pytest_plugins = ["async_bento.integrations.pytest_plugin"]

A test that takes `bento_registry` then has an empty registry on this machine, and an empty `$BENTOML_HOME`. Variables
of the environment lead to both, so what is tested needs no arguments, and neither does a process it starts:

    def test_a_deployment_pulls_its_bento(bento_registry):
        with BentoAPI() as api:
            api.push("./build/my_bento")

The registry runs on an event loop in a thread of its own. It serves a blocking test and an async one alike, whichever
plugin runs the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_bento._core.concurrency import open_portal
from async_bento.registry.server import LocalRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["bento_home", "bento_registry"]

_STRONGER = ("ASYNC_BENTO_ENDPOINT", "ASYNC_BENTO_API_TOKEN", "BENTOML_CLOUD_CONTEXT")


@pytest.fixture
def bento_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$BENTOML_HOME`: no bento, no model and no context of the developer's own is seen.

    Args:
        tmp_path_factory: pytest's.
        monkeypatch: pytest's.

    Returns:
        The directory, whose `bentos` and `models` are the stores.
    """
    home = tmp_path_factory.mktemp("bentoml")
    monkeypatch.setenv("BENTOML_HOME", str(home))
    return home


@pytest.fixture
def bento_registry(
    bento_home: Path,  # noqa: ARG001 - a home beside it
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[LocalRegistry]:
    """An empty registry, and the variables that lead to it: `BENTO_CLOUD_API_ENDPOINT` and `BENTO_CLOUD_API_KEY`.

    Args:
        bento_home: An empty home beside it.
        tmp_path_factory: pytest's.
        monkeypatch: pytest's.

    Yields:
        The registry, whose `endpoint` and `api_token` are to be passed where the variables do not reach.
    """
    root = tmp_path_factory.mktemp("bento-registry")
    with (
        open_portal("bento-registry") as portal,
        portal.wrap_async_context_manager(LocalRegistry(root)) as registry,
    ):
        for name in _STRONGER:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", registry.endpoint)
        monkeypatch.setenv("BENTO_CLOUD_API_KEY", registry.api_token)
        yield registry
