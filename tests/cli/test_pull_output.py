"""`async-bento pull --output DIR`, and the same for models."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento.cli import main
from tests.builders import contents, make_bento, make_model, random_bytes
from tests.cli.test_signals import SECONDS, transferring
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from click.testing import Result

    from async_bento.registry.server import LocalRegistry


def run(*arguments: str) -> Result:
    result = make_runner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def names(directory: str = ".") -> list[str]:
    return sorted(entry.name for entry in Path(directory).iterdir())


@pytest.fixture
def bento(served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pushed bento and model; the working directory and the store are empty."""
    bento = make_bento(home, "svc:v1", {"weights": random_bytes(300_000)}, models=["mod:m1"])
    make_model(home, "mod:m1")
    done("push", "svc:v1")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "other"))
    (tmp_path / "at").mkdir()
    monkeypatch.chdir(tmp_path / "at")
    return bento


def test_output_prints_directory(bento: Path, tmp_path: Path) -> None:
    assert done("pull", "svc", "-o", "svc") == f"svc:v1 is in {tmp_path / 'at/svc'}\n"
    assert contents(tmp_path / "at/svc") == contents(bento)
    pulled = done("pull", "svc:v1", "--output", "new/svc", "-m", "--json")
    assert json.loads(pulled) == {"tag": "svc:v1", "path": str(tmp_path / "at/new/svc")}
    assert (tmp_path / "at/new/svc/models/mod/m1/model.yaml").is_file()
    assert done("models", "pull", "mod", "-o", "mod", "-q") == ""
    assert names("mod") == ["model.yaml", "weights"]
    assert not (tmp_path / "other").exists()


def test_existing_output_needs_force(bento: Path, tmp_path: Path) -> None:
    done("pull", "svc", "-o", "svc")
    result = run("pull", "svc", "-o", "svc", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    error = json.loads(result.stderr)["error"]
    assert error == {
        "message": f"cannot pull to {tmp_path / 'at/svc'}: the directory already has a bento",
        "type": "PathExistsError",
        "hint": "Pull with force (`--force`) to replace it, or choose another directory.",
    }
    (tmp_path / "at/svc/weights").write_bytes(b"")
    done("pull", "svc", "-o", "svc", "--force")
    assert contents(tmp_path / "at/svc") == contents(bento)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pull", "svc:v1", "other"), "--output takes one bento. Name one tag, or run the command once per bento."),
        (("pull", "--all"), "--output takes one bento. Name one tag, or run the command once per bento."),
        (("models", "pull", "m*"), "--output takes one model. Name one tag, or run the command once per model."),
        (("pull", "svc:v1"), "Directory 'file' is a file."),
    ],
)
def test_output_misuse_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    result = run(*arguments, "-o", "file" if "file" in message else "dir")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_dry_run_names_directory(bento: Path, tmp_path: Path) -> None:
    planned = done("pull", "svc", "-m", "-o", "svc", "--dry-run").splitlines()
    assert planned[0].startswith("Would pull bento svc:v1: ")
    assert planned[0].endswith(f", to {tmp_path / 'at/svc'}.")
    assert planned[1].endswith(f", to {tmp_path / 'at/svc/models'}.")
    assert done("models", "pull", "mod", "-o", "mod", "--dry-run").endswith(f", to {tmp_path / 'at/mod'}.\n")
    assert names() == []
    done("pull", "svc", "-o", "svc")
    assert "already has a bento" in run("pull", "svc", "-o", "svc", "--dry-run").stderr
    assert done("pull", "svc", "-o", "svc", "--dry-run", "--force").startswith("Would pull bento svc:v1: ")


@pytest.mark.posix("signals between processes")
@pytest.mark.processes
def test_interrupt_leaves_nothing(bento: Path, tmp_path: Path) -> None:
    environment = os.environ | {"ASYNC_BENTO_TRANSFER_RANGE_SIZE": "65536"}
    with transferring(tmp_path, "pull", "svc:v1", "-o", "svc", env=environment) as process:
        meanwhile = names()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)

    assert (process.returncode, errors.splitlines()[-1]) == (130, "Interrupted.")
    assert meanwhile == [".svc.async-bento"]
    assert names() == []


@pytest.mark.posix("/proc")
def test_unwritable_output_fails(bento: Path) -> None:
    result = run("pull", "svc:v1", "-o", "/proc/svc")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot pull svc:v1: cannot " in result.stderr
