"""`verify` and `diff`."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI
from async_bento.cli import main
from tests.builders import make_bento, make_model
from tests.cli_runner import make_runner
from tests.platforms import IS_WINDOWS

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from async_bento.registry.server import LocalRegistry


@pytest.fixture
def bento(served: LocalRegistry, home: Path) -> Path:
    """A local copy of `svc:v1`; the registry also has `svc:v2` and `mod:m1`."""
    path = make_bento(home, files={"src/service.py": b"pass\n", "src/a.py": b"a\n"})
    make_bento(home, "svc:v2", {"src/service.py": b"pass\n" * 2, "src/b.py": b"b\n"})
    make_model(home)
    with BentoAPI(progress=False) as api:
        api.push(["svc:v1", "svc:v2"])
        api.models.push("mod:m1")
    return path


def run(*arguments: str) -> Result:
    return make_runner().invoke(main, arguments)


def test_verify_prints_differences(bento: Path) -> None:
    same = run("verify", "svc:v1")
    assert (same.exit_code, same.output) == (0, "svc:v1 is the same as in the registry (by checksums).\n")
    assert run("verify", "svc:v1", "-q").output == ""
    assert run("models", "verify", "mod:m1").stdout == "mod:m1 is the same as in the registry (by checksums).\n"
    full = run("verify", f"{bento}/", "--full", "--json")
    assert json.loads(full.stdout) == {"tag": "svc:v1", "is_same": True, "method": "content", "differences": []}

    os.utime(bento / "src/a.py", (0, 0))
    touched = run("verify", "svc:v1")
    assert (touched.exit_code, touched.stdout) == (1, "changed src/a.py\n")
    assert touched.stderr == (
        "svc:v1 differs from the registry's copy (by names, sizes, times and modes). "
        "Only times differ: --full compares the contents.\n"
    )
    assert run("verify", "svc:v1", "--full").stdout == "svc:v1 is the same as in the registry (by contents).\n"

    (bento / "src/a.py").unlink()
    (bento / "src/service.py").write_bytes(b"fail\n" * 2)
    new = "new line" if IS_WINDOWS else "new\nline"
    (bento / "src" / new).touch()
    different = run("verify", "svc:v1", "--quiet")
    assert (different.exit_code, different.stderr) == (1, "")
    printed = new.replace("\n", "\\n")
    assert different.stdout == f"removed src/a.py\nadded src/{printed}\nchanged src/service.py\n"
    found = json.loads(run("verify", "svc:v1", "--json").stdout)
    assert (found["is_same"], found["method"]) == (False, "index")
    assert found["differences"][0] == {"path": "src/a.py", "kind": "removed", "changes": []}
    assert {"size"} <= {*found["differences"][2]["changes"]}


def test_diff_prints_differences(bento: Path) -> None:
    done = run("diff", "svc:v1", "svc:v2")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert [line for line in lines if "yaml" not in line] == [
        "removed src/a.py",
        "added src/b.py",
        "changed src/service.py",
    ]
    assert done.stderr.startswith("svc:v2 differs from svc:v1 (by names, sizes, times and modes).")
    same = run("models", "diff", "mod", "mod:m1", "--json")
    assert (same.exit_code, same.stderr) == (0, "")
    assert json.loads(same.stdout) == {
        "tag": "mod:m1",
        "other": "mod:m1",
        "is_same": True,
        "method": "checksums",
        "differences": [],
    }


def test_missing_item_fails(bento: Path, home: Path) -> None:
    shutil.copytree(bento, home / "bentos/mine/v1")
    text = (bento / "bento.yaml").read_text()
    (home / "bentos/mine/v1/bento.yaml").write_text(text.replace("name: svc", "name: mine"))
    for arguments, message in (
        (("verify", "svc:v9"), "Error: no bento svc:v9 in"),
        (("verify", "mine:v1"), "Error: no bento mine:v1 in the registry"),
        (("models", "verify", "svc:v1"), "Error: no model svc:v1 in"),
        (("diff", "svc:v1", "svc:v9"), "Error: no bento svc:v9 in the registry"),
    ):
        done = run(*arguments)
        assert (done.exit_code, done.stdout) == (3, "")
        assert done.stderr.startswith(message)


@pytest.mark.parametrize("arguments", [("verify", "svc:*"), ("diff", "svc:v1", "svc:*")])
def test_pattern_is_rejected(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert "'svc:*' is a pattern. Name one bento." in done.stderr
