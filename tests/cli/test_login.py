"""`async-bento login` and `async-bento context`: prompts, checks, storage and secrecy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from async_bento.cli import main
from async_bento.rest.contexts import read_contexts
from async_bento.rest.credentials import DEFAULT_ENDPOINT
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

    from async_bento.registry.server import LocalRegistry

NOWHERE = "http://127.0.0.1:1"


def run(*arguments: str, typed: str = "") -> Result:
    result = make_runner().invoke(main, arguments, input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def path(home: Path) -> Path:
    return home / ".yatai.yaml"


@pytest.fixture
def registry(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> LocalRegistry:
    """A registry that no variable names."""
    monkeypatch.delenv("BENTO_CLOUD_API_ENDPOINT")
    monkeypatch.delenv("BENTO_CLOUD_API_KEY")
    return served


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_bento.cli.login._can_prompt", lambda: True)


def log_in(registry: LocalRegistry, *more: str) -> Result:
    return run("login", "--endpoint", registry.endpoint, "--api-token-stdin", *more, typed=f"{registry.api_token}\n")


def test_login_stores_context(registry: LocalRegistry, path: Path) -> None:
    result = log_in(registry)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"Logged in to {registry.endpoint} as admin (admin@localhost).\n"
        f"Stored as the current context 'default' in {path}\n"
    )
    (context,) = read_contexts(path).contexts
    assert (context.name, context.endpoint, context.email) == ("default", registry.endpoint, "admin@localhost")
    assert context.api_token.get_secret_value() == registry.api_token
    assert run("list").stderr == f"No bentos in the registry at {registry.endpoint}.\n"


def test_login_prompts_at_terminal(registry: LocalRegistry, path: Path, at_a_terminal: None) -> None:
    result = run("login", typed=f"{registry.endpoint}\n{registry.api_token}\n")
    assert result.exit_code == 0, result.output
    assert f"Endpoint [{DEFAULT_ENDPOINT}]" in result.stderr
    assert "Endpoint" not in result.stdout  # which may be redirected
    assert "API token" not in result.stdout
    assert registry.api_token not in result.output
    assert read_contexts(path).contexts[0].endpoint == registry.endpoint


@contextmanager
def prompted_for_token(endpoint: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a login that waits for the token at a terminal; yield the process and the terminal's other end."""
    termios = pytest.importorskip("termios")
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "async_bento", "login", "--endpoint", endpoint],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        while b"hidden" not in shown:
            shown += os.read(ours, 4096)
        # click before 8.4 turns the echo off after the prompt, which discards earlier input.
        while termios.tcgetattr(ours)[3] & termios.ECHO:
            time.sleep(0.01)
        yield process, ours
    os.close(ours)


def test_login_prompt_hides_token(registry: LocalRegistry, path: Path) -> None:
    with prompted_for_token(registry.endpoint) as (process, terminal):
        os.write(terminal, f"{registry.api_token}\n".encode())
        shown = b""
        while b"Stored as" not in shown:
            shown += os.read(terminal, 4096)
        process.wait(30)
    assert process.returncode == 0
    assert registry.api_token.encode() not in shown


def test_login_uses_env_variables(served: LocalRegistry, path: Path) -> None:
    result = run("login")
    assert result.exit_code == 0, result.stderr
    assert read_contexts(path).contexts[0].api_token.get_secret_value() == served.api_token
    assert served.api_token not in result.output
    assert result.stderr == (
        "Note: BENTO_CLOUD_API_KEY and BENTO_CLOUD_API_ENDPOINT override the current context. "
        "Unset them to use the context.\n"
    )


def test_login_withholds_env_token(served: LocalRegistry, path: Path) -> None:
    result = run("login", "--endpoint", "https://evil.example")
    assert (result.exit_code, path.exists()) == (2, False)
    assert "to https://evil.example: it is for " in result.stderr


def test_login_strips_env_token(served: LocalRegistry, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", f"{served.api_token}\n")
    assert run("login").exit_code == 0
    assert read_contexts(path).contexts[0].api_token.get_secret_value() == served.api_token


@pytest.mark.posix("shell")
def test_closed_stdin_states_remedy(path: Path) -> None:
    result = subprocess.run(
        ["sh", "-c", 'exec "$0" -m async_bento login --endpoint https://r.example "$@" <&-', sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, path.exists()) == (2, False)
    assert result.stderr.startswith("Error: no API token: standard input is not a terminal. Pipe the token in")


def test_rejected_token_not_stored(registry: LocalRegistry, path: Path) -> None:
    result = run("login", "--endpoint", registry.endpoint, "--api-token-stdin", typed="tk-5ecret\n")
    assert (result.exit_code, result.stdout, path.exists()) == (4, "", False)
    assert (
        f"the registry at {registry.endpoint} does not accept this API token. Check the token; nothing was stored."
        in result.stderr
    )
    assert "5ecret" not in result.output


def test_unreachable_stores_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNC_BENTO_RETRY_ATTEMPTS", "1")
    result = run("login", "--endpoint", NOWHERE, "--api-token-stdin", typed="tk-5ecret\n")
    assert (result.exit_code, path.exists()) == (5, False)
    assert "5ecret" not in result.output


def test_login_has_no_token_option(path: Path) -> None:
    result = run("login", "--api-token", "tk-5ecret")
    assert (result.exit_code, path.exists()) == (2, False)
    assert "--api-token-stdin" in result.stderr
    assert "5ecret" not in result.output


def test_no_terminal_states_remedy() -> None:
    result = run("login", "--endpoint", NOWHERE)
    assert result.exit_code == 2
    assert "Pipe the token in with --api-token-stdin, or set BENTO_CLOUD_API_KEY." in result.stderr


def test_login_rejects_empty_input(registry: LocalRegistry, path: Path) -> None:
    result = run("login", "--endpoint", registry.endpoint, "--api-token-stdin")
    assert (result.exit_code, path.exists()) == (2, False)
    assert "no API token: the input is empty." in result.stderr


def test_prompt_eof_stores_nothing(path: Path) -> None:
    with prompted_for_token(NOWHERE) as (process, terminal):
        os.write(terminal, b"\x04")  # Ctrl-D
        process.wait(30)
    assert (process.returncode, path.exists()) == (130, False)


def test_login_checks_file_first(registry: LocalRegistry, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("contexts: [")
    result = log_in(registry)
    assert (result.exit_code, path.read_text()) == (2, "contexts: [")
    assert "is not valid YAML" in result.stderr


def test_login_keeps_other_registry(registry: LocalRegistry, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("contexts: [{name: default, endpoint: 'https://prod.example', api_token: t}]")
    result = log_in(registry)
    assert result.exit_code == 2
    assert "Name a new context with --name, or replace this one with --name default." in result.stderr
    assert "prod.example" in path.read_text()
    assert log_in(registry, "--name", "default").exit_code == 0
    assert "prod.example" not in path.read_text()


def test_login_again_keeps_endpoint(registry: LocalRegistry, path: Path) -> None:
    path.parent.mkdir()
    text = f"contexts: [{{name: lab, endpoint: '{registry.endpoint}', api_token: old}}]\ncurrent_context_name: lab"
    path.write_text(text)
    result = run("login", "--api-token-stdin", typed=registry.api_token)
    assert result.exit_code == 0, result.stderr
    (context,) = read_contexts(path).contexts
    assert (context.name, context.api_token.get_secret_value()) == ("lab", registry.api_token)


# Contexts


@pytest.fixture
def two(registry: LocalRegistry) -> LocalRegistry:
    """Log in twice; the later context is current."""
    assert log_in(registry, "--name", "prod").exit_code == 0
    assert log_in(registry, "--name", "lab").exit_code == 0
    return registry


def test_context_list_marks_current(two: LocalRegistry) -> None:
    result = run("context", "list")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["NAME", "ENDPOINT", "EMAIL"],
        ["prod", two.endpoint, "admin@localhost"],
        ["*", "lab", two.endpoint, "admin@localhost"],
    ]
    assert two.api_token not in result.output


def test_context_json_hides_tokens(two: LocalRegistry) -> None:
    result = run("context", "list", "--json")
    assert [(context["name"], context["current"]) for context in json.loads(result.stdout)] == [
        ("prod", False),
        ("lab", True),
    ]
    assert two.api_token not in result.output


def test_empty_list_states_remedy() -> None:
    result = run("context", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Run `async-bento login` to add one." in result.stderr


def test_context_use_switches(two: LocalRegistry) -> None:
    assert run("context", "current").stdout == "lab\n"
    assert run("context", "use", "prod").stdout == f"Switched to the context 'prod' for {two.endpoint}\n"
    assert json.loads(run("context", "current", "--json").stdout)["name"] == "prod"


def test_context_use_lists_known(two: LocalRegistry) -> None:
    result = run("context", "use", "staging")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no context 'staging'" in result.stderr
    assert ": the file has only lab, prod. Use one of these, or run `async-bento login" in result.stderr


def test_context_remove_and_rename(two: LocalRegistry, path: Path) -> None:
    assert run("context", "rename", "lab", "staging").stdout == "Renamed the context 'lab' to 'staging'\n"
    assert run("context", "current").stdout == "staging\n"
    taken = run("context", "rename", "staging", "prod")
    assert taken.exit_code == 2
    assert f"{path} has a context 'prod'. Use another name." in taken.stderr
    removed = run("context", "remove", "prod")
    assert removed.stdout == f"Removed the context 'prod' for {two.endpoint}\n"
    assert removed.stderr == ""
    assert [context.name for context in read_contexts(path).contexts] == ["staging"]
    assert run("context", "remove", "prod").exit_code == 2
    assert run("context", "rename", "prod", "lab").exit_code == 2


def test_logout_removes_current(two: LocalRegistry, path: Path) -> None:
    result = run("logout")
    assert result.stdout == f"Logged out of {two.endpoint}: removed the context 'lab' from {path}\n"
    assert result.stderr == "No context is current now. Select prod with `async-bento context use NAME`.\n"
    assert "no API token" in run("list").stderr
    assert run("logout").exit_code == 2
    assert run("logout", "--name", "prod").exit_code == 0
    assert two.api_token not in path.read_text()


def test_logout_names_env_variables(two: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "tk-5ecret")
    result = run("logout")
    assert result.stderr.endswith("Note: BENTO_CLOUD_API_KEY still selects a registry. Unset it to log out.\n")


def test_whoami_names_token_source(two: LocalRegistry, path: Path) -> None:
    assert run("whoami").stdout == (
        f"admin (admin@localhost) at {two.endpoint}, with the token from context 'lab' in {path}\n"
    )
    assert json.loads(run("whoami", "--context", "prod", "--json").stdout) == {
        "name": "admin",
        "email": "admin@localhost",
        "endpoint": two.endpoint,
        "token": f"context 'prod' in {path}",
    }


def test_no_current_context_fails() -> None:
    result = run("context", "current")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no current context in " in result.stderr


@pytest.mark.parametrize("arguments", [("list",), ("current",), ("use", "prod")])
def test_token_variable_is_noted(
    arguments: tuple[str, ...], two: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "tk-5ecret")
    result = run("context", *arguments)
    assert result.exit_code == 0
    assert result.stderr.startswith(
        "Note: BENTO_CLOUD_API_KEY overrides the current context. Unset it to use the context."
    )
    assert "5ecret" not in result.output


@pytest.mark.parametrize("arguments", [("list",), ("current",), ("use", "lab")])
def test_context_variable_is_noted(
    arguments: tuple[str, ...], two: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_CLOUD_CONTEXT", "prod")
    result = run("context", *arguments)
    assert result.exit_code == 0
    assert result.stderr.startswith(
        "Note: BENTOML_CLOUD_CONTEXT overrides the current context. Unset it to use the context."
    )


@pytest.mark.parametrize("named", ["lab", ""])
def test_matching_variable_not_noted(named: str, two: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_CLOUD_CONTEXT", named)
    assert run("context", "current").stderr == ""


def test_login_uses_context_variable(two: LocalRegistry, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_CLOUD_CONTEXT", "staging")
    assert log_in(two).exit_code == 0
    known = read_contexts(path)
    assert [context.name for context in known.contexts] == ["prod", "lab", "staging"]
    assert known.current_context_name == "staging"
