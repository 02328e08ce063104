"""Shell completion: the script, and the completed values."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.shell_completion import ShellComplete
from pydantic import SecretStr

from async_bento import BentoAPI
from async_bento.cli import main
from async_bento.rest.contexts import Context, contexts_path, store_context
from tests.builders import make_bento, make_model
from tests.cli.test_progress import on_terminal
from tests.cli_runner import make_runner
from tests.eventually import eventually

if TYPE_CHECKING:
    from async_bento.registry.server import LocalRegistry

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


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
@pytest.mark.parametrize("command", ["push", "pull", "get", "verify"])
def test_offers_local_tags(command: str) -> None:
    assert completed(command, "iris") == ["iris:v1", "iris:v2"]
    assert completed(command, "iris:v2") == ["iris:v2"]
    assert completed(command, "") == ["fraud:v1", "iris:v1", "iris:v2"]
    assert completed(command, "rose") == []
    assert completed("models", command, "ir") == ["iris_weights:m1"]


@pytest.mark.usefixtures("stores", "served")
def test_slow_registry_offers_local_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, logs = logging.getLogger("async_bento"), []

    async def wait(*_: object) -> list[str]:
        logs.append(logger.isEnabledFor(logging.CRITICAL))
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("async_bento.cli.completion._list_remote", wait)
    monkeypatch.setattr("async_bento.cli.completion._REMOTE_SECONDS", 0.01)
    assert completed("pull", "iris") == ["iris:v1", "iris:v2"]
    assert logs == [False]
    assert logger.isEnabledFor(logging.WARNING)


@pytest.mark.usefixtures("stores")
@pytest.mark.parametrize("command", ["pull", "get", "exists", "delete", "diff"])
def test_offers_registry_tags(served: LocalRegistry, home: Path, command: str) -> None:
    with BentoAPI(progress=False) as api:
        api.push("iris:v1")
        api.models.push("iris_weights:m1")
    make_bento(home, "iris:v3")
    shutil.rmtree(home / "bentos/iris/v1")
    assert completed(command, "iris") == completed(command, "") == ["iris:v1"]
    assert completed(command, "iris:v1") == ["iris:v1"]
    assert completed(command, "iris:v2") == []
    assert completed("models", command, "ir") == ["iris_weights:m1"]
    down = completed(command, "--endpoint", "http://127.0.0.1:1", "iris")
    assert down == ["iris:v2", "iris:v3"]


@pytest.mark.usefixtures("stores", "served")
def test_offers_newest_matching_tags(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bento(home, "rose:v1", built="2030-01-01 00:00:00")
    with BentoAPI(progress=False) as api:
        api.push("iris:v1")
        api.push("rose:v1")
    monkeypatch.setattr("async_bento.cli.completion._REMOTE_TAGS", 1)
    assert completed("pull", "iris") == ["iris:v1"]


@pytest.mark.parametrize("group", [[], ["models"]])
def test_push_offers_directories(group: list[str]) -> None:
    complete = ShellComplete(main, {}, "async-bento", "_ASYNC_BENTO_COMPLETE")
    for word in ("./", "../ben", "~/", "/tmp", "."):
        (found,) = complete.get_completions([*group, "push"], word)
        assert (found.type, found.value) == ("dir", word)


def test_no_store_creates_nothing(home: Path) -> None:
    assert completed("push", "") == []
    assert not home.exists()


def test_offers_commands_and_options() -> None:
    assert completed("re") == ["registry"]
    assert completed("models", "pu") == ["pull", "push"]
    assert "--with-models" in completed("pull", "--")


@pytest.mark.parametrize("words", [("context", "use"), ("push", "--context")])
def test_offers_contexts(home: Path, words: tuple[str, str]) -> None:
    for name in ("staging", "production"):
        store_context(contexts_path(), Context(name=name, endpoint="http://127.0.0.1:1", api_token=SecretStr("t")))
    assert completed(*words, "sta") == ["staging"]
    contexts_path().write_text("{")
    assert completed(*words, "sta") == []  # a broken file completes nothing, silently


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_valid_shell(shell: str) -> None:
    script = make_runner().invoke(main, ["completion", shell]).stdout
    assert f"_ASYNC_BENTO_COMPLETE={shell}_complete" in script
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True)


@pytest.mark.posix("bash with the command")
@pytest.mark.usefixtures("stores")
@pytest.mark.parametrize(
    ("breaks", "line", "replies"),
    [
        (":", "async-bento push iris:v", "v1 v2"),
        (":", "async-bento push iris", "iris:v1 iris:v2"),
        (":", "async-bento push ", "fraud:v1 iris:v1 iris:v2"),
        ("", "async-bento push iris:v", "iris:v1 iris:v2"),
        (":", "async-bento contex", "context"),
    ],
)
def test_bash_completes_whole_tags(breaks: str, line: str, replies: str) -> None:
    script = f"""
COMP_WORDBREAKS=' {breaks}'
source <(async-bento completion bash)
[ "$COMP_WORDBREAKS" = ' {breaks}' ] || echo "the script changed COMP_WORDBREAKS"
COMP_LINE='{line} more' COMP_POINT={len(line)}
_async_bento_completion async-bento
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{replies}\n", "")


@pytest.mark.posix("bash with the command")
@pytest.mark.processes
@pytest.mark.usefixtures("stores")
async def test_bash_keeps_word_breaks() -> None:
    bash = ("bash", "--norc", "--noprofile", "-i")
    async with on_terminal(program=bash, columns=200, TERM="dumb", PS1="> ", PATH=PATH, HISTFILE="") as terminal:
        terminal.type('before="$COMP_WORDBREAKS"; source <(async-bento completion bash); echo ready\n')
        await eventually(lambda: terminal.lines[-2:] == ["ready", ">"])  # before the prompt, the terminal echoes a tab
        for keys, line in (
            ("async-bento pus\t", "async-bento push "),
            ("iris:\t", "async-bento push iris:v"),
            ("2\t", "async-bento push iris:v2 "),
            ("--forc\t", "async-bento push iris:v2 --force "),
        ):
            terminal.type(keys)
            await eventually(lambda: terminal.lines[-1].replace("\a", "") == f"> {line}".rstrip())  # noqa: B023 - called in this turn
        terminal.type('\x15[ "$COMP_WORDBREAKS" = "$before" ] && exit 7\n')
        assert await terminal.end() == 7


def test_install_adds_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):  # the latter is that of Windows
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".bashrc").write_text("alias ll='ls -l'")
    monkeypatch.setenv("SHELL", "/bin/bash")
    for _ in range(2):
        assert make_runner().invoke(main, ["completion", "--install"]).exit_code == 0
    script = tmp_path / ".local/share/async-bento/completion.bash"
    assert "_ASYNC_BENTO_COMPLETE" in script.read_text()
    before, line = (tmp_path / ".bashrc").read_text().splitlines()
    assert before == "alias ll='ls -l'"
    quoted = shlex.quote(str(script))
    assert line == f"[ -r {quoted} ] && . {quoted}  # async-bento completion"
    make_runner().invoke(main, ["completion", "zsh", "--install"], catch_exceptions=False)
    assert "completion.zsh" in (tmp_path / ".zshrc").read_text()
    monkeypatch.setenv("ZDOTDIR", str(tmp_path / ".local"))
    for shell, startup in (("bash", ".bashrc"), ("zsh", ".local/.zshrc")):
        installed = make_runner().invoke(main, ["completion", shell, "--install"])
        assert f" and {tmp_path / startup}. " in installed.stdout
    make_runner().invoke(main, ["completion", "fish", "--install"], catch_exceptions=False)
    assert (tmp_path / ".config/fish/completions/async-bento.fish").is_file()
    monkeypatch.setenv("SHELL", "/bin/dash")
    unknown = make_runner().invoke(main, ["completion"])
    assert (unknown.exit_code, "Name one: bash, zsh or fish." in unknown.stderr) == (2, True)


@pytest.mark.parametrize(("path", "where"), [("/home/ada/.bashrc", "/home/ada/.bashrc: "), (None, "")])
def test_install_on_full_disk_has_reason(monkeypatch: pytest.MonkeyPatch, path: str | None, where: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr("async_bento.cli.completion._install", full)
    result = make_runner().invoke(main, ["completion", "bash", "--install"])
    assert result.stderr == f"Error: cannot install the completion: {where}No space left on device.\n"


def test_install_keeps_file_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "日本"
    home.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    (home / ".bashrc").write_bytes(b"# caf\xe9\n")
    for _ in range(2):
        assert make_runner().invoke(main, ["completion", "bash", "--install"]).exit_code == 0
    before, line = (home / ".bashrc").read_bytes().splitlines(keepends=True)
    assert (before, line.endswith(b"async-bento completion\n")) == (b"# caf\xe9\n", True)
    assert str(home) in line.decode()
    assert b"\r" not in (home / ".local/share/async-bento/completion.bash").read_bytes()


def test_zsh_loads_compinit_first() -> None:
    first, second, *_ = make_runner().invoke(main, ["completion", "zsh"]).stdout.splitlines()
    assert first == "#compdef async-bento"
    assert "$+functions[compdef]" in second
    assert "compinit -i" in second
