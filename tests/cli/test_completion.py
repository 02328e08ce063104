"""Shell completion: the script, and the completed values."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from pydantic import SecretStr

from async_bento.cli import main
from async_bento.rest.contexts import Context, contexts_path, store_context
from tests.builders import make_bento, make_model
from tests.cli_runner import make_runner


def completed(*words: str) -> list[str]:
    """The completions of the last word."""
    complete = ShellComplete(main, {}, "async-bento", "_ASYNC_BENTO_COMPLETE")
    return [found.value for found in complete.get_completions([*words[:-1]], words[-1])]


@pytest.fixture
def stores(home: Path) -> Path:
    make_bento(home, "iris:v1")
    make_bento(home, "iris:v2")
    make_bento(home, "fraud:v1")
    make_model(home, "iris_weights:m1")
    return home


@pytest.mark.usefixtures("stores")
@pytest.mark.parametrize("command", ["push", "pull", "get"])
def test_completion_offers_local_tags(command: str) -> None:
    assert completed(command, "iris") == ["iris:v1", "iris:v2"]
    assert completed(command, "iris:v2") == ["iris:v2"]
    assert completed(command, "") == ["fraud:v1", "iris:v1", "iris:v2"]
    assert completed(command, "rose") == []
    assert completed("models", command, "ir") == ["iris_weights:m1"]


def test_completion_without_store_creates_nothing(home: Path) -> None:
    assert completed("push", "") == []
    assert not home.exists()


def test_completion_offers_commands_and_options() -> None:
    assert completed("re") == ["registry"]
    assert completed("models", "pu") == ["pull", "push"]
    assert "--with-models" in completed("pull", "--")


@pytest.mark.parametrize("words", [("context", "use"), ("push", "--context")])
def test_completion_offers_contexts(home: Path, words: tuple[str, str]) -> None:
    for name in ("staging", "production"):
        store_context(contexts_path(), Context(name=name, endpoint="http://127.0.0.1:1", api_token=SecretStr("t")))
    assert completed(*words, "sta") == ["staging"]
    contexts_path().write_text("{")
    assert completed(*words, "sta") == []  # a broken file completes nothing, silently


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_valid_for_each_shell(shell: str) -> None:
    script = make_runner().invoke(main, ["completion", shell]).stdout
    assert f"_ASYNC_BENTO_COMPLETE={shell}_complete" in script
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.usefixtures("stores")
def test_completion_in_bash_offers_whole_tags() -> None:
    script = """
source <(async-bento completion bash)
case "$COMP_WORDBREAKS" in *:*) echo "bash splits tags at colons"; exit 1;; esac
COMP_WORDS=(async-bento push iris:v) COMP_CWORD=2
_async_bento_completion async-bento
echo "${COMPREPLY[@]}"
"""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("iris:v1 iris:v2\n", "")
