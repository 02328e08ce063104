"""`ls`, `cat` and the pull of some files."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI
from async_bento.cli import main
from async_bento.cli.output import print_bytes
from tests.builders import contents, make_bento, make_model, random_bytes
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from async_bento.registry.server import LocalRegistry

WEIGHTS = random_bytes(2_000_000, 4)


@pytest.fixture
def pushed(served: LocalRegistry, home: Path) -> None:
    """A registry that has `svc:v1` and `mod:m1`."""
    make_bento(home, files={"src/service.py": b"pass\n", "src/lib/a.py": b"a\n", "weights": WEIGHTS})
    make_model(home, "mod:m1", {"weights": b"w" * 10})
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
        api.models.push("mod:m1")


def run(*arguments: str) -> Result:
    return make_runner().invoke(main, arguments)


@pytest.mark.usefixtures("pushed")
def test_ls_lists_sizes_and_paths() -> None:
    done = run("ls", "svc")
    assert done.exit_code == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [(size, path) for size, _, _, path in rows if path != "bento.yaml"] == [
        ("2", "src/lib/a.py"),
        ("5", "src/service.py"),
        ("2000000", "weights"),
    ]
    below = run("ls", "svc:v1", "./src/").stdout.splitlines()
    assert [line.split()[-1] for line in below] == ["src/lib/a.py", "src/service.py"]
    assert [line.split()[-1] for line in run("ls", "svc:v1", "weights").stdout.splitlines()] == ["weights"]
    assert [line.split()[-1] for line in run("models", "ls", "mod").stdout.splitlines()] == ["model.yaml", "weights"]


@pytest.mark.usefixtures("pushed")
def test_ls_prints_json() -> None:
    entries = json.loads(run("ls", "svc:v1", "src", "--json").stdout)
    assert [(entry["path"], entry["type"], entry["size"]) for entry in entries] == [
        ("src", "directory", 0),
        ("src/lib", "directory", 0),
        ("src/lib/a.py", "file", 2),
        ("src/service.py", "file", 5),
    ]


@pytest.mark.usefixtures("pushed")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ls", "svc:v1", "nothing"), "Error: no nothing in svc:v1. `async-bento ls svc:v1` shows all files."),
        (("ls", "svc:v9"), "Error: no bento svc:v9 in the registry"),
        (("cat", "svc:v1", "src"), "Error: cannot open files of svc:v1: src is a directory"),
        (("cat", "svc:v1", "nothing"), "Error: cannot open files of svc:v1: no nothing"),
        (("models", "cat", "svc:v1", "model.yaml"), "Error: no model svc:v1 in the registry"),
    ],
)
def test_missing_file_is_not_found(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith(message)


@pytest.mark.usefixtures("pushed")
def test_cat_prints_file_bytes() -> None:
    assert run("cat", "svc:v1", "weights").stdout_bytes == WEIGHTS
    assert run("models", "cat", "mod", "weights").stdout_bytes == b"w" * 10


@pytest.mark.usefixtures("pushed")
def test_cat_closed_pipe_is_quiet() -> None:
    command = [sys.executable, "-m", "async_bento", "cat", "svc:v1", "weights"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(100) == WEIGHTS[:100]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) != 0


@pytest.mark.posix("a signal to another process")
@pytest.mark.usefixtures("pushed")
def test_cat_interrupt_leaves_unread_pipe() -> None:
    command = [sys.executable, "-m", "async_bento", "cat", "svc:v1", "weights"]
    # A small pipe, so that the command waits for its reader from the first bytes on.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=4096) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(100) == WEIGHTS[:100]
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 130
        finally:
            process.kill()
        assert process.stderr.read() == b"Interrupted.\n"


@pytest.mark.posix("a pipe that refuses bytes instead of waiting")
def test_full_pipe_refuses_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb"), open(writer, "w") as output:  # noqa: PTH123 - descriptors
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(BlockingIOError, match=os.strerror(errno.EAGAIN)):
            print_bytes(WEIGHTS)


@pytest.mark.usefixtures("pushed")
def test_pull_include_extracts_files(tmp_path: Path) -> None:
    place = tmp_path / "out"
    done = run("pull", "svc:v1", "-o", str(place), "--include", "src/*", "--exclude", "*/a.py", "--progress", "none")
    assert (done.exit_code, done.stdout) == (0, f"1 file of svc:v1 in {place}\n"), done.stderr
    assert contents(place) == {"src": None, "src/lib": None, "src/service.py": b"pass\n"}

    done = run("models", "pull", "mod", "-o", str(tmp_path / "model"), "--exclude", "*.yaml", "--json")
    assert json.loads(done.stdout) == {"tag": "mod:m1", "path": str(tmp_path / "model"), "files": ["weights"]}
    assert contents(tmp_path / "model") == {"weights": b"w" * 10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pull", "svc", "--include", "*"), "--include and --exclude need --output"),
        (("pull", "svc", "-o", "out", "--include", "*", "-m"), "do not support --with-models"),
        (("ls",), "Name the bento whose files to list. `async-bento list` lists the bentos."),
        (("models", "ls"), "Name the model whose files to list. `async-bento models list` lists the models."),
        (("models", "pull", "svc", "-o", "out", "--exclude", "*", "--dry-run"), "do not support --dry-run"),
    ],
)
def test_wrong_usage_is_rejected(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
