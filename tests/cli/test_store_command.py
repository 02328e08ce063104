"""`async-bento store`: list, path, delete and prune."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoStore, ModelStore, StoreError
from async_bento.cli import main
from async_bento.store.staging import KEPT, STATE, StagingArea
from tests.builders import left_in_scratch, make_bento, make_model
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


def run(*arguments: str, typed: str = "") -> Result:
    result = make_runner().invoke(main, ["store", *arguments], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def stored(home: Path) -> Path:
    """Three bentos and a model in the local stores."""
    for tag in ("iris:v1", "iris:v2", "fraud:v1"):
        make_bento(home, tag)
    make_model(home, "weights:w1")
    return home


def tags(*arguments: str) -> list[str]:
    return [item["tag"] for item in json.loads(run("list", "--json", *arguments).stdout)]


def test_list_shows_local_items(stored: Path) -> None:
    head, *rows = run("list").stdout.splitlines()
    assert head.split() == ["TAG", "SIZE", "BUILT", "(UTC)"]
    assert rows[0].split() == ["fraud:v1", "137", "B", "2024-05-06", "07:08"]
    assert tags() == ["fraud:v1", "iris:v1", "iris:v2"]
    assert tags("iris") == ["iris:v1", "iris:v2"]
    assert tags("*:v1") == ["fraud:v1", "iris:v1"]
    assert tags("--models") == ["weights:w1"]


def test_list_empty_prints_note(home: Path) -> None:
    result = run("list", "--models")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"No models in the local store {home / 'models'}.\n"
    assert not home.exists()


def test_path_prints_directories(stored: Path) -> None:
    assert run("path").stdout == f"{stored / 'bentos'}\n"
    assert run("path", "iris:v1").stdout == f"{stored / 'bentos/iris/v1'}\n"
    assert run("path", "weights", "--models").stdout == f"{stored / 'models/weights/w1'}\n"
    result = run("path", "rose")
    assert result.exit_code == 3
    assert result.stderr.endswith("To download the bento, run `async-bento pull rose`.\n")
    assert run("path", "iris", "--models").stderr.endswith("Run `async-bento store path iris`.\n")
    assert run("list", "weights").stderr.endswith("Run `async-bento store list weights --models`.\n")


def test_delete_removes_named_items(stored: Path) -> None:
    assert run("delete", "iris:latest", "--yes").stdout.startswith("Deleted bento iris:v")
    assert run("delete", "iris:*", "-y").exit_code == 0
    assert tags() == ["fraud:v1"]
    assert run("delete", "weights:w1", "--models", "-y").stdout == "Deleted model weights:w1.\n"
    assert tags("--models") == []


def test_delete_removes_broken_item(stored: Path) -> None:
    (stored / "bentos/fraud/v1/bento.yaml").write_text("[")
    assert run("delete", "fraud:v1", "--yes").exit_code == 0
    assert not (stored / "bentos/fraud").exists()


def test_store_delete_asks_first(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("delete", "iris:v1")
    assert result.exit_code == 2
    assert "standard input is not a terminal. Pass --yes." in result.stderr
    monkeypatch.setattr("async_bento.cli.confirm._can_ask", lambda: True)
    result = run("delete", "iris:v1", typed="n\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert tags("iris") == ["iris:v1", "iris:v2"]
    assert run("delete", "iris:v1", typed="y\n").stdout == "Deleted bento iris:v1.\n"
    assert tags("iris") == ["iris:v2"]


@pytest.mark.parametrize(
    ("tag", "code", "message"),
    [
        ("iris", 2, "cannot delete iris: the tag has no version. Write `iris:VERSION`"),
        ("rose:v1", 3, "the store has fraud, iris. `async-bento store list` shows the local bentos.\n"),
        ("weights:w1", 3, "no bento weights:w1: it is a model. Run `async-bento store delete weights:w1 --models`.\n"),
        ("rose:*", 3, "matches 'rose:*'"),
        ("fraud:v", 3, "no bento fraud:v in "),
        ("weights:w", 3, "no bento weights:w in "),
    ],
)
def test_wrong_tag_deletes_nothing(stored: Path, tag: str, code: int, message: str) -> None:
    result = run("delete", "fraud:v1", tag, "--yes")
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert len(tags()) == 3
    assert "async-bento pull" not in result.stderr


def interrupt_pull(tag: str, store: BentoStore | ModelStore | None = None) -> None:
    with suppress(InterruptedError), (store or BentoStore()).stage(tag) as staged:
        (staged / "file").write_bytes(b"12345")
        (staged.parent / STATE).write_text("{}")
        raise InterruptedError


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), StoreError("of the store")])
def test_prune_passes_over_failures(stored: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Another process may remove the same path at the same time."""
    for tag in ("svc:first", "svc:second"):
        interrupt_pull(tag)
    prune, failed = StagingArea._prune, []

    def fail_once(self: StagingArea, path: Path, dry_run: bool) -> dict[Path, int]:
        if not failed and path.name.startswith(KEPT):
            failed.append(path)
            raise error
        return prune(self, path, dry_run)

    monkeypatch.setattr(StagingArea, "_prune", fail_once)
    assert run("prune").exit_code == 0
    assert failed
    assert run("prune").exit_code == 0
    assert left_in_scratch(stored) == []


def test_prune_dry_run_makes_no_directory(stored: Path) -> None:
    before = sorted(stored.rglob("*"))
    assert stored / "tmp" not in before
    assert run("prune", "--dry-run").stderr == "Nothing to remove.\n"
    assert sorted(stored.rglob("*")) == before


@pytest.mark.parametrize(("store", "make"), [(BentoStore, make_bento), (ModelStore, make_model)])
def test_prune_needs_one_store(
    home: Path, store: Callable[[], BentoStore | ModelStore], make: Callable[[Path], Path]
) -> None:
    make(home)
    interrupt_pull("svc:v1", store())
    assert run("prune").stderr == "Removed 7 B.\n"


def test_prune_removes_unlocked_only(stored: Path) -> None:
    store = BentoStore()
    for tag in ("svc:gone", "svc:used"):
        interrupt_pull(tag)
    for tag in ("svc:pushed", "svc:in-push"):
        store.journal(tag, "http://127.0.0.1:1").write_text("{}")
    with store.lock("svc:used"), store.push_lock("svc:in-push", "http://127.0.0.1:1"):
        planned = run("prune", "--dry-run")
        assert planned.stdout.count("Would remove ") == 2
        assert planned.stderr == "Would remove 9 B.\n"
        assert len({name.partition("/")[0] for name in left_in_scratch(stored)}) == 4
        assert run("prune").stderr == "Removed 9 B.\n"
        left = {name.partition("/")[0] for name in left_in_scratch(stored)}
        assert len(left) == 2
        assert all("used" in name or "in-push" in name for name in left)
    assert sum(item["size_bytes"] for item in json.loads(run("prune", "--json").stdout)) == 9
    assert left_in_scratch(stored) == []
    assert run("prune").stderr == "Nothing to remove.\n"
    assert tags() == ["fraud:v1", "iris:v1", "iris:v2"]
