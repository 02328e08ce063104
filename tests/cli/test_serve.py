"""What `async-bento registry serve` passes to the registry, and what it sets up before."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from async_bento import ConfigError
from async_bento._core.garbage import deferred_collection
from async_bento.cli import main
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from pathlib import Path


class Started:
    """A registry that records how it is started, and refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: dict[str, Any] = {}
        self.steps: list[str] = []
        self.collects = False
        monkeypatch.setattr("async_bento.registry.server.LocalRegistry", self._start)
        monkeypatch.setattr(
            "async_bento.registry.connections.raise_descriptor_limit", lambda: self.steps.append("raise limit")
        )

    def _start(self, _root: str, **options: Any) -> None:
        self.options = options
        self.steps.append("start")
        self.collects = gc.isenabled()
        raise ConfigError("refused")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started(monkeypatch)


def serve(root: Path, *arguments: str) -> None:
    result = make_runner().invoke(main, ["registry", "serve", "--root", str(root), *arguments])
    assert result.stderr == "Error: refused\n"


def test_serve_defaults(started: Started, tmp_path: Path) -> None:
    serve(tmp_path)
    assert started.options["min_free"] == 0
    assert started.options["access_log"] is None
    assert started.options["pages"]
    assert not started.options["immutable"]
    assert started.options["upstream"] is started.options["mirror_size"] is None


def test_serve_passes_options(started: Started, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t\n")
    words = "--min-free 20G --no-pages --immutable --prune-keep 1 --prune-older-than 2d --grace 0"
    mirror = [
        "--upstream",
        "http://127.0.0.1:9",
        "--upstream-token-file",
        str(tmp_path / "token"),
        "--mirror-size",
        "1T",
    ]
    serve(tmp_path, *words.split(), *mirror)
    expected = {
        "min_free": 20 * 2**30,
        "pages": False,
        "immutable": True,
        "prune_keep": 1,
        "prune_older_than": 2 * 24 * 3600.0,
        "grace": 0.0,
        "upstream": "http://127.0.0.1:9",
        "upstream_token": SecretStr("t"),
        "mirror_size": 2**40,
    }
    assert {name: started.options[name] for name in expected} == expected


def test_serve_prepares_process(started: Started, tmp_path: Path) -> None:
    logger = logging.getLogger("async_bento.registry")
    with deferred_collection():
        serve(tmp_path)
    gc.unfreeze()
    assert started.collects
    assert started.steps == ["raise limit", "start"]
    assert logger.level == logging.INFO  # what the cleanup deletes
    logger.setLevel(logging.NOTSET)
    serve(tmp_path, "-vv")
    assert logger.isEnabledFor(logging.DEBUG)
