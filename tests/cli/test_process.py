"""The `async-bento` command in unusual processes: closed or full output, no home directory, ASCII locales."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI
from tests.builders import make_bento

if TYPE_CHECKING:
    from async_bento.registry.server import LocalRegistry

pytestmark = [pytest.mark.processes, pytest.mark.posix("shell, and no users without a home")]

# A user without a passwd entry, by the call of `os.path.expanduser`.
NO_HOME = """
import os, pwd
def missing(_): raise KeyError
pwd.getpwuid = missing
os.environ.pop("HOME", None)
"""

COMMAND = f"{NO_HOME}from async_bento.cli import main; main()"

LIST_WITH_STORES = f"""{NO_HOME}
import sys
from async_bento import BentoAPI, BentoStore, ModelStore
_, endpoint, token, home = sys.argv
stores = dict(bento_store=BentoStore(f"{{home}}/bentos"), model_store=ModelStore(f"{{home}}/models"))
with BentoAPI(endpoint=endpoint, api_token=token, progress=False, **stores) as api:
    print(len(api.list().items), api.push("svc:v1").tag)
"""


def run(*arguments: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command, with a redirection of the shell."""
    command = [sys.executable, "-m", "async_bento", *arguments]
    if redirect:
        command = ["sh", "-c", f'exec "$0" "$@" {redirect}', *command]
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_code(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def pushed(served: LocalRegistry, home: Path) -> LocalRegistry:
    """A registry with a bento with non-ASCII labels and files."""
    make_bento(home, "svc:v1", {"src/é日本.txt": b"text"}, labels={"team": "→日本"})
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    return served


@pytest.mark.parametrize("command", ["list", "get svc:v1", "cat svc:v1 bento.yaml", "doctor", "--help"])
def test_closed_output_is_no_error(pushed: LocalRegistry, command: str) -> None:
    result = run(*command.split(), redirect=">&-")
    assert "Traceback" not in result.stderr
    assert result.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")  # noqa: PTH110 - at import
@pytest.mark.parametrize("command", ["list", "get svc:v1 --json", "cat svc:v1 bento.yaml", "doctor", "--help"])
def test_full_output_exits_1(pushed: LocalRegistry, command: str) -> None:
    result = run(*command.split(), redirect=">/dev/full")
    *_, line = result.stderr.splitlines()
    message, hint = "cannot write the output: No space left on device", "Check the disk or the program that reads it."
    if "--json" in command:
        assert json.loads(line) == {"error": {"message": message, "type": "OSError", "hint": hint}}
    else:
        assert line == f"Error: {message}. {hint}"
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")  # noqa: PTH110 - at import
def test_full_standard_error_exits_1(pushed: LocalRegistry) -> None:
    assert run("get", "missing", redirect="2>/dev/full").returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")  # noqa: PTH110 - at import
def test_unwritten_output_keeps_code() -> None:
    program = """
import sys
from async_bento.cli.process import process_errors
with process_errors(as_json=False):
    sys.stdout.write("a line")
    sys.exit(3)
"""
    with Path("/dev/full").open("w") as full:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("list", 0),
        ("get svc:v1", 0),
        ("models list", 0),
        ("ls svc:v1", 0),
        ("cat svc:v1 bento.yaml", 0),
        ("pull svc:v1 --output {directory}", 0),
        ("push svc:v1", 2),
        ("pull svc:v1", 2),
        ("login", 2),
        ("context list", 2),
        ("doctor", 2),
        ("completion bash", 0),
    ],
)
def test_no_home_named_when_needed(pushed: LocalRegistry, tmp_path: Path, command: str, status: int) -> None:
    result = run_code(COMMAND, *command.format(directory=tmp_path / "pulled").split(), BENTOML_HOME="")
    assert (result.returncode, "Traceback" in result.stderr) == (status, False), result.stderr
    if status:
        assert (
            "cannot find the local store in ~/bentoml: there is no such home directory. "
            "Set BENTOML_HOME to an absolute path."
        ) in result.stdout + result.stderr


def test_bentoml_home_replaces_home(pushed: LocalRegistry, tmp_path: Path) -> None:
    result = run_code(COMMAND, "pull", "svc:v1", BENTOML_HOME=str(tmp_path / "other"))
    assert (result.returncode, result.stdout) == (0, f"svc:v1 is in {tmp_path}/other/bentos/svc/v1\n")


def test_no_home_with_stores_works(served: LocalRegistry, home: Path) -> None:
    make_bento(home)
    result = run_code(
        LIST_WITH_STORES, served.endpoint, served.api_token, str(home), BENTOML_HOME="", BENTO_CLOUD_API_KEY=""
    )
    assert result.stdout == "0 svc:v1\n", result.stderr


def test_ascii_locale_pulls_names(pushed: LocalRegistry, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    result = run("pull", "svc:v1", BENTOML_HOME=str(other), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    directories = [os.fsencode(root / "bentos/svc/v1/src") for root in (home, other)]
    assert os.listdir(directories[1]) == os.listdir(directories[0]) == ["é日本.txt".encode()]  # noqa: PTH208 - bytes


def test_ascii_locale_pushes_names(pushed: LocalRegistry, home: Path) -> None:
    result = run("push", "svc:v1", "--force", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_escapes_unencodable(pushed: LocalRegistry, encoding: str) -> None:
    result = run("get", "svc:v1", PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, "")
    # click treats ASCII as a wrong configuration and writes UTF-8.
    assert ("team=→日本" if encoding == "ascii" else "team=\\u2192\\u65e5\\u672c") in result.stdout


def test_output_keeps_path_bytes(pushed: LocalRegistry, tmp_path: Path) -> None:
    other = os.fsencode(tmp_path) + b"/b\x80\xe9\xff"
    result = subprocess.run(
        [sys.executable, "-m", "async_bento", "pull", "svc:v1"],
        env={**os.environb, b"BENTOML_HOME": other},
        capture_output=True,
        check=False,
    )
    assert result.stdout == b"svc:v1 is in " + other + b"/bentos/svc/v1\n", result.stderr


REFUSED = """
from async_bento.cli import main
from async_bento.rest.client import RestApiClient
def refuse(*_, **__): raise {error}
RestApiClient.__init__ = refuse
main(["list", *{options}])
"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            "MemoryError",
            "Error: not enough memory. Raise the limit of this process (ulimit -v), or free some memory.\n",
        ),
        (
            'RuntimeError("can\'t start new thread")',
            "Error: cannot start a thread: too many processes. Raise the limit of this user (ulimit -u).\n",
        ),
    ],
)
def test_refused_resource_exits_1(error: str, message: str) -> None:
    result = run_code(REFUSED.format(error=error, options=[]))
    assert (result.stderr, result.returncode) == (message, 1)
    result = run_code(REFUSED.format(error=error, options=["--json"]))
    described = json.loads(result.stderr)["error"]
    assert f"Error: {described['message']}. {described['hint']}\n" == message
    assert (described["type"], result.stdout, result.returncode) == (error.partition("(")[0], "", 1)
