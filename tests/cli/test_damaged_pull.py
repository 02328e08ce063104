"""`async-bento pull` of an item whose bytes have changed in the registry's directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from async_bento.cli import main
from tests.builders import MiB, contents, left_in_scratch, make_model, random_bytes
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from async_bento.registry.server import LocalRegistry

SIZE = 11 * MiB


@pytest.fixture
def damaged(served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for the pull of `mod:m1`, whose second of three parts has a flipped bit in the registry."""
    make_model(home, files={"weights": random_bytes(SIZE, 1)})
    monkeypatch.setenv("ASYNC_BENTO_TRANSFER_PART_SIZE", str(5 * MiB))
    assert run("models", "push", "mod:m1", "-q").exit_code == 0
    (part,) = (path for path in (tmp_path / "registry").rglob("00002.*") if path.is_file())
    content = bytearray(part.read_bytes())
    content[MiB] ^= 1
    part.write_bytes(content)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    return tmp_path / "other"


def run(*arguments: str) -> Result:
    result = make_runner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def is_empty(home: Path) -> bool:
    stored = [path for path in (home / "models").rglob("*") if path.is_file()]
    return not stored and not left_in_scratch(home)


@pytest.mark.parametrize("tag", ["mod:m1", "mod"])
def test_damaged_part_states_remedy(damaged: Path, tag: str) -> None:
    result = run("models", "pull", tag, "--json")

    assert (result.exit_code, result.stdout) == (1, "")
    error = json.loads(result.stderr)["error"]
    failed, _, md5s = error.pop("message").partition(" has the MD5 ")
    assert failed == "cannot pull mod:m1: the registry's copy is damaged: part 2 of its tar"
    assert len({*md5s.split(" instead of ")}) == 2
    assert error == {
        "type": "IntegrityError",
        "hint": "Push the model again with force (`--force`); the registry's operator can find all damaged tars with "
        "`async-bento registry check`.",
    }
    assert is_empty(damaged)


def test_forced_push_repairs_item(damaged: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("models", "pull", "mod:m1").exit_code == 1
    monkeypatch.setenv("BENTOML_HOME", str(home))
    assert run("models", "push", "mod:m1", "--force", "-q").exit_code == 0
    monkeypatch.setenv("BENTOML_HOME", str(damaged))

    assert run("models", "pull", "mod:m1").exit_code == 0

    assert contents(damaged / "models/mod/m1") == contents(home / "models/mod/m1")


def test_unverified_pull_succeeds(damaged: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNC_BENTO_TRANSFER_VERIFY", "0")

    assert run("models", "pull", "mod:m1").exit_code == 0

    pulled, pushed = ((at / "models/mod/m1/weights").read_bytes() for at in (damaged, home))
    assert sum(one != other for one, other in zip(pulled, pushed, strict=True)) == 1
