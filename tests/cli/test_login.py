"""`async-bento login` and `async-bento context`: what is asked, checked, stored, and never shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from async_bento.cli import main
from async_bento.rest.contexts import read_contexts
from async_bento.rest.credentials import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry

NOWHERE = "http://127.0.0.1:1"


def run(*arguments: str, typed: str = "") -> Result:
    result = CliRunner().invoke(main, arguments, input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def path(home: Path) -> Path:
    return home / ".yatai.yaml"


@pytest.fixture
def registry(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> LocalRegistry:
    """A registry that no variable leads to."""
    monkeypatch.delenv("BENTO_CLOUD_API_ENDPOINT")
    monkeypatch.delenv("BENTO_CLOUD_API_KEY")
    return served


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_bento.cli.login._can_ask", lambda: True)


def log_in(registry: LocalRegistry, *more: str) -> Result:
    return run("login", "--endpoint", registry.endpoint, "--api-token-stdin", *more, typed=f"{registry.api_token}\n")


def test_a_login_is_stored_told_and_used(registry: LocalRegistry, path: Path) -> None:
    result = log_in(registry)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"Logged in to {registry.endpoint} as admin (admin@localhost).\n"
        f"Stored as the context 'default', which is the current one now, in {path}\n"
    )
    (context,) = read_contexts(path).contexts
    assert (context.name, context.endpoint, context.email) == ("default", registry.endpoint, "admin@localhost")
    assert context.api_token.get_secret_value() == registry.api_token
    assert run("list").stderr == "The registry has none.\n"


def test_what_is_missing_is_asked_for(registry: LocalRegistry, path: Path, at_a_terminal: None) -> None:
    result = run("login", typed=f"{registry.endpoint}\n{registry.api_token}\n")
    assert result.exit_code == 0, result.output
    assert f"Endpoint [{DEFAULT_ENDPOINT}]" in result.output
    assert registry.api_token not in result.output
    assert read_contexts(path).contexts[0].endpoint == registry.endpoint


def test_a_token_typed_at_a_terminal_is_not_echoed(registry: LocalRegistry, path: Path) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "async_bento", "login", "--endpoint", registry.endpoint],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"not shown" not in shown:
        shown += os.read(ours, 4096)
    os.write(ours, f"{registry.api_token}\n".encode())
    while b"Stored as" not in shown:
        shown += os.read(ours, 4096)
    process.wait(30)
    os.close(ours)
    assert process.returncode == 0
    assert registry.api_token.encode() not in shown


def test_endpoint_and_token_may_be_those_of_the_environment(served: LocalRegistry, path: Path) -> None:
    result = run("login")
    assert result.exit_code == 0, result.stderr
    assert read_contexts(path).contexts[0].api_token.get_secret_value() == served.api_token
    assert served.api_token not in result.output
    assert result.stderr == (
        "Note: BENTO_CLOUD_API_KEY and BENTO_CLOUD_API_ENDPOINT are set, and stronger than the current context; "
        "unset to use it.\n"
    )


def test_a_token_of_the_environment_goes_to_its_own_endpoint_alone(served: LocalRegistry, path: Path) -> None:
    result = run("login", "--endpoint", "https://evil.example")
    assert (result.exit_code, path.exists()) == (2, False)
    assert "is not sent to https://evil.example" in result.stderr


def test_a_wrong_token_is_told_and_nothing_stored(registry: LocalRegistry, path: Path) -> None:
    result = run("login", "--endpoint", registry.endpoint, "--api-token-stdin", typed="tk-5ecret\n")
    assert (result.exit_code, result.stdout, path.exists()) == (4, "", False)
    assert f"the registry at {registry.endpoint} does not accept this API token; nothing was stored" in result.stderr
    assert "5ecret" not in result.output


def test_a_registry_that_is_not_reached_stores_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNC_BENTO_RETRY_ATTEMPTS", "1")
    result = run("login", "--endpoint", NOWHERE, "--api-token-stdin", typed="tk-5ecret\n")
    assert (result.exit_code, path.exists()) == (5, False)
    assert "5ecret" not in result.output


def test_a_token_is_no_argument(path: Path) -> None:
    result = run("login", "--api-token", "tk-5ecret")
    assert (result.exit_code, path.exists()) == (2, False)
    assert "--api-token-stdin" in result.stderr
    assert "5ecret" not in result.output


def test_where_nobody_can_be_asked_it_says_what_to_do() -> None:
    result = run("login", "--endpoint", NOWHERE)
    assert result.exit_code == 2
    assert "pipe it in with --api-token-stdin, or set BENTO_CLOUD_API_KEY" in result.stderr


def test_an_empty_input_is_no_token(registry: LocalRegistry, path: Path) -> None:
    result = run("login", "--endpoint", registry.endpoint, "--api-token-stdin")
    assert (result.exit_code, path.exists()) == (2, False)
    assert "no API token came by standard input" in result.stderr


def test_a_prompt_that_is_interrupted_stores_nothing(path: Path, at_a_terminal: None) -> None:
    result = run("login", "--endpoint", NOWHERE)  # the input ends at the prompt, as by Ctrl-D
    assert (result.exit_code, path.exists()) == (130, False)


def test_a_broken_file_is_told_before_anything_is_asked(registry: LocalRegistry, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("contexts: [")
    result = log_in(registry)
    assert (result.exit_code, path.read_text()) == (2, "contexts: [")
    assert "is not valid YAML" in result.stderr


def test_another_registry_does_not_take_the_place_of_the_current_one_unasked(
    registry: LocalRegistry, path: Path
) -> None:
    path.parent.mkdir()
    path.write_text("contexts: [{name: default, endpoint: 'https://prod.example', api_token: t}]")
    result = log_in(registry)
    assert result.exit_code == 2
    assert "give the new one a name by --name, or replace that one by --name default" in result.stderr
    assert "prod.example" in path.read_text()
    assert log_in(registry, "--name", "default").exit_code == 0
    assert "prod.example" not in path.read_text()


def test_a_new_token_for_the_current_context_needs_no_endpoint(registry: LocalRegistry, path: Path) -> None:
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
    """Logged in twice; the later one is current."""
    assert log_in(registry, "--name", "prod").exit_code == 0
    assert log_in(registry, "--name", "lab").exit_code == 0
    return registry


def test_the_list_marks_the_current_one_and_shows_no_token(two: LocalRegistry) -> None:
    result = run("context", "list")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["NAME", "ENDPOINT", "EMAIL"],
        ["prod", two.endpoint, "admin@localhost"],
        ["*", "lab", two.endpoint, "admin@localhost"],
    ]
    assert two.api_token not in result.output


def test_the_list_is_json_for_a_machine(two: LocalRegistry) -> None:
    result = run("context", "list", "--json")
    assert [(one["name"], one["current"]) for one in json.loads(result.stdout)] == [("prod", False), ("lab", True)]
    assert two.api_token not in result.output


def test_no_contexts_is_said_with_what_to_do() -> None:
    result = run("context", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "`async-bento login` stores one" in result.stderr


def test_another_context_is_used(two: LocalRegistry) -> None:
    assert run("context", "current").stdout == "lab\n"
    assert run("context", "use", "prod").stdout == f"The current context is 'prod' now: {two.endpoint}\n"
    assert json.loads(run("context", "current", "--json").stdout)["name"] == "prod"


def test_an_unknown_context_is_said(two: LocalRegistry) -> None:
    result = run("context", "use", "staging")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no context 'staging'" in result.stderr
    assert "(it has: lab, prod)" in result.stderr


def test_no_current_context_is_said() -> None:
    result = run("context", "current")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no context is the current one" in result.stderr


@pytest.mark.parametrize("arguments", [("list",), ("current",), ("use", "prod")])
def test_a_variable_that_is_stronger_is_named(
    arguments: tuple[str, ...], two: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", "tk-5ecret")
    result = run("context", *arguments)
    assert result.exit_code == 0
    assert result.stderr.startswith("Note: BENTO_CLOUD_API_KEY is set, and stronger than the current context")
    assert "5ecret" not in result.output


@pytest.mark.parametrize("arguments", [("list",), ("current",), ("use", "lab")])
def test_a_variable_that_names_another_context_is_told(
    arguments: tuple[str, ...], two: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_CLOUD_CONTEXT", "prod")
    result = run("context", *arguments)
    assert result.exit_code == 0
    assert result.stderr.startswith("Note: BENTOML_CLOUD_CONTEXT is set, and stronger than the current context")


@pytest.mark.parametrize("named", ["lab", ""])
def test_a_variable_that_names_the_current_context_or_none_is_in_nobodys_way(
    named: str, two: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_CLOUD_CONTEXT", named)
    assert run("context", "current").stderr == ""


def test_a_login_is_stored_as_the_context_that_a_variable_names(
    two: LocalRegistry, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_CLOUD_CONTEXT", "staging")
    assert log_in(two).exit_code == 0
    known = read_contexts(path)
    assert [one.name for one in known.contexts] == ["prod", "lab", "staging"]
    assert known.current_context_name == "staging"
