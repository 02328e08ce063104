"""`copy` and `models copy`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI
from async_bento.cli import main
from async_bento.registry import LocalRegistry
from tests.builders import make_bento, make_model
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result


def run(*arguments: str) -> Result:
    return make_runner().invoke(main, arguments)


def out(*arguments: str) -> str:
    done = run(*arguments, "--progress", "none")
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture
def target(served: LocalRegistry, home: Path, tmp_path: Path) -> Iterator[LocalRegistry]:
    """The target registry, as context `there`; the current registry has two versions of a bento, and a model."""
    make_model(home, "mod:m1")
    make_bento(home, "svc:v1", built="2024-01-01 00:00:00", models=["mod:m1"])
    make_bento(home, "svc:v2", built="2024-02-01 00:00:00")
    with BentoAPI(progress=False) as api:
        api.push(["svc:v1", "svc:v2"])
    with LocalRegistry(tmp_path / "there") as there:
        contexts = [
            {"name": "here", "endpoint": served.endpoint, "api_token": served.api_token},
            {"name": "there", "endpoint": there.endpoint, "api_token": there.api_token},
            {"name": "wrong", "endpoint": there.endpoint, "api_token": "wrong"},
        ]
        text = json.dumps({"contexts": contexts, "current_context_name": "here"})  # JSON is valid YAML
        (home / ".yatai.yaml").write_text(text)
        yield there


@pytest.mark.usefixtures("target")
def test_copy_reports_copied_items() -> None:
    planned = out("copy", "svc:v1", "--to", "there", "--dry-run").splitlines()
    assert [line.partition(": ")[0] for line in planned] == [
        "Would copy model mod:m1",
        "Would copy bento svc:v1",
        *["Would copy 2 of 2 items"],
    ]
    model, bento = json.loads(out("copy", "svc:v1", "--to", "there", "--dry-run", "--json"))
    record = json.loads(out("get", "svc:v1", "--json"))
    assert bento["size_bytes"] == record["manifest"]["size_bytes"] - model["size_bytes"] > 0
    assert out("copy", "svc:v1", "--from", "here", "--to", "there", "--limit-rate", "1G").startswith(
        "Copied bento svc:v1: 10.0 KiB, "
    )
    assert out("copy", "svc:v1", "--to", "there") == (
        "Skipped bento svc:v1: already copied. Use --force to copy it again.\n"
    )
    assert out("copy", "svc:*", "--to", "there").splitlines()[1:] == [
        "Skipped bento svc:v1: already copied. Use --force to copy it again."
    ]
    copied = json.loads(out("models", "copy", "mod:m1", "--to", "there", "--force", "--json"))
    assert (copied["tag"], copied["skipped"], copied["parts"]) == ("mod:m1", False, 1)
    assert out("models", "copy", "mod", "--to", "there", "--dry-run") == "Would skip model mod:m1: already copied.\n"


@pytest.mark.usefixtures("target")
def test_copy_may_exclude_models() -> None:
    out("copy", "--all", "--to", "there", "--without-models", "--keep-labels")
    assert json.loads(out("models", "list", "--context", "there", "--json")) == []
    planned = out("copy", "svc:v1", "--to", "there", "--without-models", "--force", "--dry-run")
    assert planned.startswith("Would copy bento svc:v1: at most ")


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("copy", "svc:v1"), 2, "Missing option '--to'"),
        (("copy", "--to", "there"), 2, "Name at least one bento to copy"),
        (("copy", "svc:v1", "--to", "there", "--threads", "0"), 2, "0 is not in the range x>=1"),
        (("copy", "svc:v1", "--to", "here", "--from", "here"), 2, "source and target are both"),
        (("copy", "svc:v1", "--to", "nowhere"), 2, "nowhere"),
        (("copy", "svc:v1", "--to", "there", "--limit-rate", "5"), 2, "'5' is no rate. Use KiB, MiB or GiB per second"),
        (("copy", "svc:v9", "--to", "there"), 3, "no bento svc:v9 in the registry at"),
        (
            ("copy", "svc:v9", "--to", "there", "--from", "here"),
            3,
            "`async-bento list --context here` shows its bentos",
        ),
        (("models", "copy", "none:*", "--to", "there"), 3, "no model in the registry matches 'none:*'"),
    ],
)
def test_invalid_copy_states_reason(arguments: tuple[str, ...], code: int, message: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in " ".join(done.stderr.split())


def test_wrong_token_names_registry(target: LocalRegistry) -> None:
    done = run("copy", "svc:v1", "--to", "wrong", "--without-models")
    assert done.exit_code == 4
    assert target.endpoint in done.stderr
