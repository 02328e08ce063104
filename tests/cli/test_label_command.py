"""`label` and `models label`, and the labels of push and pull."""

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


def run(*arguments: str) -> Result:
    return make_runner().invoke(main, arguments)


def out(*arguments: str) -> str:
    done = run(*arguments, "--progress", "none")
    assert done.exit_code == 0, done.stderr
    return done.stdout


def labels(tag: str, *group: str) -> dict[str, str]:
    return json.loads(out(*group, "label", tag, "--json"))["labels"]


@pytest.fixture
def pushed(served: LocalRegistry, home: Path) -> LocalRegistry:
    """Two versions of a bento, of which the older one is in production, and a model."""
    make_bento(home, "svc:v1", built="2024-01-01 00:00:00", labels={"stage": "prod"})
    make_bento(home, "svc:v2", built="2024-02-01 00:00:00", labels={"team": "nlp"})
    make_model(home, "mod:m1")
    with BentoAPI(progress=False) as api:
        api.push(["svc:v1", "svc:v2"])
        api.models.push("mod:m1")
    return served


@pytest.mark.usefixtures("pushed")
def test_label_sets_removes_prints() -> None:
    assert out("label", "svc", "stage=beta", "team-", "no-") == "Labelled bento svc:v2: stage=beta, team removed.\n"
    assert out("label", "svc:v2", "stage=beta") == "The labels of bento svc:v2 are unchanged.\n"
    assert out("label", "svc:v2", "a=b=c d", "-q") == ""
    assert out("label", "svc:v2") == "a=b=c d\nstage=beta\n"
    assert json.loads(out("label", "svc:v2", "stage-", "--json")) == {"tag": "svc:v2", "labels": {"a": "b=c d"}}
    assert out("models", "label", "mod:m1", "key=") == "Labelled model mod:m1: key=.\n"
    assert labels("mod", "models") == {"key": ""}
    none = run("label", "svc:v2", "a-")
    assert none.exit_code == 0
    empty = run("label", "svc:v2")
    assert (empty.exit_code, empty.stdout, empty.stderr) == (0, "", "Bento svc:v2 has no labels.\n")


WRONG: list[tuple[tuple[str, ...], int, str]] = [
    (("svc:v1", "stage"), 2, "'stage' is no change. Write stage=VALUE to set the label, or stage- to remove it."),
    (("svc:v1", "=x"), 2, "'=x' has no key. Write KEY=VALUE to set a label, or KEY- to remove one."),
    (("svc:v1", "a=1", "a-"), 2, "The label 'a' is given twice. Name each key once."),
    (("svc:v1", "a b=1"), 2, "invalid key 'a b' of a label: registries cannot search for it."),
    (("stage=prod",), 2, "invalid name 'stage=prod' in a tag"),
    (("svc:v9", "a=1"), 3, "no bento svc:v9 in the registry at "),
    (("mod:m1", "a=1"), 3, "no bento mod:m1: it is a model. Run `async-bento models label mod:m1`."),
    (("mod", "a=1"), 3, "no bento mod: it is a model. Run `async-bento models label mod`."),
]


@pytest.mark.usefixtures("pushed")
def test_wrong_arguments_rejected() -> None:
    for arguments, code, message in WRONG:
        done = run("label", *arguments)
        assert (done.exit_code, done.stdout) == (code, ""), arguments
        assert message in " ".join(done.stderr.split())
    assert labels("svc:v1") == {"stage": "prod"}


@pytest.mark.usefixtures("pushed")
def test_read_only_token_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created = run("registry", "token", "create", "reader", "--role", "read", "--root", str(tmp_path / "registry"))
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", created.stdout.strip())
    done = run("label", "svc:v1", "stage=dev")
    assert done.exit_code == 4
    assert "the token reader has the role read, and this request needs the role push" in done.stderr
    assert out("label", "svc:v1") == "stage=prod\n"


@pytest.mark.usefixtures("pushed")
def test_pull_label_gets_promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    planned = json.loads(out("pull", "svc", "--label", "stage=prod", "--dry-run", "--json"))
    assert [(plan["tag"], plan["action"]) for plan in planned] == [("svc:v1", "pull")]
    assert json.loads(out("pull", "svc", "--label", "stage=prod", "--json"))["tag"] == "svc:v1"
    assert out("pull", "svc", "-l", "team=nlp", "-o", str(tmp_path / "out")).startswith("svc:v2 is in ")
    some = out("pull", "svc:latest", "-l", "stage=prod", "-o", str(tmp_path / "some"), "--include", "src/*")
    assert some.startswith("1 file of svc:v1 in ")
    missing = run("pull", "svc", "--label", "stage=prod", "--label", "team=nlp")
    assert missing.exit_code == 3
    assert "no bento svc with the labels stage=prod, team=nlp in the registry" in missing.stderr
    out("models", "label", "mod", "stage=prod")
    assert json.loads(out("models", "pull", "mod", "-l", "stage=prod", "--json"))["tag"] == "mod:m1"
    planned = json.loads(out("models", "pull", "mod", "-l", "stage=prod", "--dry-run", "--json"))
    assert [(plan["tag"], plan["action"]) for plan in planned] == [("mod:m1", "skip")]


@pytest.mark.parametrize("arguments", [("svc:v1",), ("svc", "iris:v2"), ("svc*",), ("--all",)])
def test_pull_label_with_version_fails(arguments: tuple[str, ...]) -> None:
    for group in ((), ("models",)):
        done = run(*group, "pull", *arguments, "--label", "stage=prod")
        assert done.exit_code == 2
        wanted = f"--label selects the version, and {arguments[-1]} does too. Name what to pull without a version."
        assert wanted in " ".join(done.stderr.split())


@pytest.mark.usefixtures("pushed")
def test_push_label_covers_skipped(home: Path) -> None:
    make_bento(home, "svc:v3")
    planned = out("push", "svc:v1", "svc:v3", "--label", "stage=beta", "--dry-run")
    assert planned.startswith(
        "Would skip bento svc:v1: already pushed, labelled stage=beta.\nWould push bento svc:v3: "
    )
    assert labels("svc:v1") == {"stage": "prod"}
    lines = out("push", "svc:v1", "svc:v3", "--label", "stage=beta", "-l", "a=b c").splitlines()
    assert lines[0] == "Labelled bento svc:v1: stage=beta, a=b c."
    assert lines[1].startswith("Pushed bento svc:v3: ")
    assert labels("svc:v1") == labels("svc:v3") == {"stage": "beta", "a": "b c"}
    assert out("push", "svc:v1", "svc:v3", "--label", "stage=dev", "--quiet") == ""
    single = out("push", "svc:v1", "--label", "stage=prod").splitlines()
    assert single[0] == "Labelled bento svc:v1: stage=prod."
    assert single[1].startswith("Skipped bento svc:v1: already pushed.")
    result = json.loads(out("models", "push", "mod:m1", "--label", "stage=prod", "--json"))
    assert (result["skipped"], result["labels"], result["dropped_labels"]) == (True, ["stage=prod"], [])
    assert labels("mod", "models") == {"stage": "prod"}


@pytest.mark.usefixtures("pushed")
def test_push_force_names_dropped() -> None:
    out("label", "svc:v2", "stage=prod")
    planned = out("push", "svc:v2", "--force", "--dry-run", "-l", "a=b")
    assert planned.endswith(", labelled a=b, drops the labels stage=prod.\n")
    assert "drops" not in out("push", "svc:v2", "--force", "--keep-labels", "--dry-run")
    assert labels("svc:v2") == {"team": "nlp", "stage": "prod"}
    kept = run("push", "svc:v2", "--force", "--keep-labels", "--progress", "none")
    assert (kept.exit_code, "dropped" in kept.stderr) == (0, False)
    assert labels("svc:v2") == {"team": "nlp", "stage": "prod"}
    result = json.loads(out("push", "svc:v2", "--force", "--json"))
    assert result["dropped_labels"] == ["stage=prod"]
    assert labels("svc:v2") == {"team": "nlp"}


@pytest.mark.parametrize(
    ("label", "message"),
    [("stage", "'stage' does not have the form KEY=VALUE."), ("=x", "'=x' does not have the form KEY=VALUE.")],
)
def test_push_label_form_is_checked(label: str, message: str) -> None:
    done = run("push", "svc:v1", "--label", label)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "given twice" in run("push", "svc:v1", "-l", "a=1", "-l", "a=2").stderr
