"""A pytest plugin with a registry as a fixture.

Enable it in the `conftest.py` at the root of your tests:

    pytest_plugins = ["async_bento.integrations.pytest_plugin"]

A test that requests `bento_registry` has an empty registry on this machine and an empty `$BENTOML_HOME`. Environment
variables name both, so neither the tested code nor a process that it starts needs arguments:

    def test_deployment_pulls_its_bento(bento_registry):
        with BentoAPI() as api:
            api.push("./build/my_bento")

The registry runs on an event loop in its own thread, so it serves blocking and async tests with any async plugin.
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

# These have precedence over the variables that the fixture sets, or would change the context.
_OVERRIDING = ("ASYNC_BENTO_ENDPOINT", "ASYNC_BENTO_API_TOKEN", "BENTOML_CLOUD_CONTEXT")


@pytest.fixture
def bento_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set `$BENTOML_HOME` to an empty directory, which hides the developer's bentos, models and contexts.

    Args:
        tmp_path_factory: pytest's fixture.
        monkeypatch: pytest's fixture.

    Returns:
        The directory. Its subdirectories `bentos` and `models` are the stores.
    """
    home = tmp_path_factory.mktemp("bentoml")
    monkeypatch.setenv("BENTOML_HOME", str(home))
    return home


@pytest.fixture
def bento_registry(
    bento_home: Path,  # noqa: ARG001 - requested for its effect
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[LocalRegistry]:
    """Start an empty registry, and set `BENTO_CLOUD_API_ENDPOINT` and `BENTO_CLOUD_API_KEY` to use it.

    Args:
        bento_home: The fixture for an empty `$BENTOML_HOME`.
        tmp_path_factory: pytest's fixture.
        monkeypatch: pytest's fixture.

    Yields:
        The registry. Its `endpoint` and `api_token` can be passed to code that ignores the variables.
    """
    root = tmp_path_factory.mktemp("bento-registry")
    with (
        open_portal("bento-registry") as portal,
        portal.wrap_async_context_manager(LocalRegistry(root)) as registry,
    ):
        for name in _OVERRIDING:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", registry.endpoint)
        monkeypatch.setenv("BENTO_CLOUD_API_KEY", registry.api_token)
        yield registry
