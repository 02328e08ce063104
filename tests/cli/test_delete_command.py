"""`async-bento delete` and `models delete`: from the registry, never from the local store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI
from async_bento.cli import main
from tests.builders import make_bento, make_model
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from async_bento.registry.server import LocalRegistry


def run(*arguments: str, typed: str = "") -> Result:
    result = make_runner().invoke(main, arguments, input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def pushed(served: LocalRegistry, home: Path) -> LocalRegistry:
    """Three bentos, one of which names a model."""
    make_model(home, "weights:w1")
    for tag in ("iris:v1", "iris:v2", "fraud:v1"):
        make_bento(home, tag, models=["weights:w1"] if tag == "fraud:v1" else [])
    with BentoAPI(endpoint=served.endpoint, api_token=served.api_token, progress=False) as api:
        api.push(["iris:v1", "iris:v2", "fraud:v1"])
    return served


def tags(*group: str) -> list[str]:
    records = json.loads(run(*group, "list", "--json").stdout)
    return sorted(f"{record['repository']['name']}:{record['version']}" for record in records)


def test_delete_keeps_local_store(pushed: LocalRegistry, home: Path) -> None:
    result = run("delete", "fraud:v1", "iris:*", "--yes")
    assert result.exit_code == 0
    assert sorted(result.stdout.splitlines()) == [
        f"Deleted bento {tag} from the registry." for tag in ("fraud:v1", "iris:v1", "iris:v2")
    ]
    assert result.stderr == "The local store was not changed.\n"
    assert tags() == []
    assert (home / "bentos/iris/v1").is_dir()


def test_delete_asks_on_terminal(pushed: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run("delete", "iris:v1")
    assert refused.exit_code == 2
    assert refused.stderr.endswith("standard input is not a terminal. Pass --yes.\n")
    monkeypatch.setattr("async_bento.cli.confirm._can_ask", lambda: True)
    denied = run("delete", "iris:v1", typed="n\n")
    assert denied.exit_code == 1
    assert f"Delete iris:v1 from the registry at {pushed.endpoint}? [y/N]: " in denied.stderr
    assert denied.stderr.endswith("Nothing was deleted.\n")
    assert tags() == ["fraud:v1", "iris:v1", "iris:v2"]
    assert run("delete", "iris:v1", typed="y\n").exit_code == 0
    assert tags() == ["fraud:v1", "iris:v2"]


def test_delete_needs_tag() -> None:
    result = run("delete", "--yes")
    assert (result.exit_code, "Missing argument 'TAGS...'" in result.stderr) == (2, True)


def test_bento_is_deleted_without_force(pushed: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[bool] = []

    async def delete(*_: object, force: bool) -> None:
        forced.append(force)

    monkeypatch.setattr("async_bento.api.deletion.delete_record", delete)
    run("delete", "iris:v1", "--yes")
    assert forced == [False]


def test_dry_run_changes_nothing(pushed: LocalRegistry) -> None:
    lines = run("delete", "iris:*", "--dry-run").stdout.splitlines()
    assert sorted(lines[:2]) == ["Would delete bento iris:v1: 136 B.", "Would delete bento iris:v2: 136 B."]
    assert lines[2:] == [f"Would delete 2 bentos from the registry at {pushed.endpoint}."]
    assert run("delete", "iris:v1", "--dry-run").stdout == "Would delete bento iris:v1: 136 B.\n"
    planned = json.loads(run("delete", "iris:v1", "--dry-run", "--json").stdout)
    assert planned == [{"tag": "iris:v1", "size_bytes": 136, "upload_status": "success"}]
    assert tags() == ["fraud:v1", "iris:v1", "iris:v2"]


def test_json_has_deleted_items(pushed: LocalRegistry) -> None:
    result = run("delete", "iris:v1", "-y", "--json")
    assert json.loads(result.stdout) == [{"tag": "iris:v1", "size_bytes": 136, "upload_status": "success"}]
    assert result.stderr == ""


def test_used_model_needs_force(pushed: LocalRegistry) -> None:
    result = run("models", "delete", "weights:w1", "--yes")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: cannot delete model weights:w1: fraud:v1 uses it. Delete the bento first, or pass --force.\n"
    )
    assert tags("models") == ["weights:w1"]
    assert run("models", "delete", "weights:w1", "--yes", "--force").exit_code == 0
    assert tags("models") == []


@pytest.mark.parametrize(
    ("tag", "code", "message"),
    [
        (
            "iris",
            2,
            "cannot delete iris: the tag has no version. Write `iris:VERSION`, or `'iris:*'` for all versions.",
        ),
        ("iris:latest", 2, "cannot delete iris:latest: the tag has no version."),
        ("iris:v9", 3, "no bento iris:v9 in the registry at "),
        ("rose:*", 3, "matches 'rose:*'."),
        ("weights:w1", 3, "no bento weights:w1: it is a model. Run `async-bento models delete weights:w1`."),
    ],
)
def test_wrong_tag_deletes_nothing(pushed: LocalRegistry, tag: str, code: int, message: str) -> None:
    result = run("delete", "fraud:v1", tag, "--yes")
    assert result.exit_code == code
    assert message in result.stderr
    assert tags() == ["fraud:v1", "iris:v1", "iris:v2"]


@pytest.mark.parametrize(
    ("group", "kept"),
    [([], "The models of a bento are kept."), (["models"], "A model that a bento in the registry names is kept")],
)
def test_delete_help_names_what_is_kept(group: list[str], kept: str) -> None:
    assert kept in " ".join(run(*group, "delete", "--help").stdout.split())
