"""`async_bento.integrations.pytest_plugin`, enabled in the tests of another project."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.builders import make_bento

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.processes

pytest_plugins = ["pytester"]

BLOCKING = """
from async_bento import BentoAPI, NotFoundError
import os, pytest

def test_pushed_bento_can_be_pulled(bento_registry):
    with BentoAPI(progress=False) as api:
        assert api.list().items == []
        api.push({bento!r})
        bento = api.pull("svc")
    assert str(bento.path).startswith(os.environ["BENTOML_HOME"])

def test_next_test_has_empty_registry_and_home(bento_registry, bento_home):
    with BentoAPI(progress=False) as api:
        assert api.list().items == []
    assert list(bento_home.iterdir()) == []
"""

ASYNC = """
from async_bento import AsyncBentoAPI
import pytest

@pytest.mark.{mark}
async def test_pushed_bento_can_be_pulled(bento_registry):
    async with AsyncBentoAPI(endpoint=bento_registry.endpoint, api_token=bento_registry.api_token) as api:
        await api.push({bento!r})
        assert [bento.version for bento in (await api.list()).items] == ["v1"]
"""

COMMAND = """
import subprocess, sys

def test_child_process_finds_the_registry(bento_registry):
    subprocess.run([sys.executable, "-m", "async_bento", "push", {bento!r}], check=True)
"""

UNDONE = """
import os

def test_variables_are_set(bento_registry):
    assert os.environ["BENTO_CLOUD_API_ENDPOINT"] == bento_registry.endpoint
    assert "ASYNC_BENTO_ENDPOINT" not in os.environ

def test_variables_are_restored():
    assert "BENTO_CLOUD_API_ENDPOINT" not in os.environ
    assert os.environ["ASYNC_BENTO_ENDPOINT"] == "http://127.0.0.1:9"
"""


def test_fixture_serves_registry(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {
        "blocking": BLOCKING,
        "asyncio": ASYNC.replace("{mark}", "asyncio"),
        "anyio": ASYNC.replace("{mark}", "anyio"),
        "command": COMMAND,
        "undone": UNDONE,
    }
    monkeypatch.setenv("ASYNC_BENTO_ENDPOINT", "http://127.0.0.1:9")  # the developer's own, which must not be asked
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider")
    pytester.makeconftest('pytest_plugins = ["async_bento.integrations.pytest_plugin"]')
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    bento = repr(str(make_bento(tmp_path / "theirs")))
    pytester.makepyfile(**{f"test_{name}": program.replace("{bento!r}", bento) for name, program in programs.items()})

    result = pytester.runpytest_subprocess("-k", "not trio")

    result.assert_outcomes(passed=7)


def test_disabled_plugin_has_no_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(bento_registry): pass")

    result = pytester.runpytest_subprocess()

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'bento_registry' not found*"])


def test_package_does_not_import_pytest() -> None:
    modules = "async_bento.cli.serve, async_bento.cli.push_pull, async_bento.registry, async_bento.api.sync_api"
    script = f"import sys, {modules}; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
