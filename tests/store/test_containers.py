"""Pulls and pushes in containers: read-only roots, users without names and homes, volumes with foreign files."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI, BentoStore, StoreError
from tests.builders import contents, make_bento, make_model
from tests.store.containers import Container, Mount, containers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.registry import LocalRegistry

__all__ = ["containers"]

pytestmark = [
    pytest.mark.posix("containers"),
    pytest.mark.processes,
    pytest.mark.long,
    pytest.mark.usefixtures("containers"),
]

USER, TEAM = 12001, 12100
"""User and group ids without names."""

REMEDY = "Make the directory writable for this user, or set BENTOML_HOME to another directory."


@pytest.fixture
def container(served: LocalRegistry, home: Path) -> Container:
    """A container with the credentials of a registry with a bento, its model, and a newer version."""
    make_model(home)
    make_bento(home, files={"src/service.py": b"pass", "run.sh": b"#!"}, models=["mod:m1"])
    make_bento(home, "svc:v2", built="2025-01-01 00:00:00")
    with BentoAPI(progress=False) as api:
        api.push(["svc:v1", "svc:v2"])
    names = ("BENTO_CLOUD_API_ENDPOINT", "BENTO_CLOUD_API_KEY")
    return Container(user=USER, environment={name: os.environ[name] for name in names})


@pytest.fixture
def volume() -> Iterator[Path]:
    """A new volume of root, which every user can reach, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def mounted(container: Container, volume: Path | None, **changes: object) -> Container:
    """Mount a volume, or a tmpfs, as `BENTOML_HOME`."""
    mounts = (Mount("/bentoml", volume, is_read_only=bool(changes.pop("is_read_only", False))),)
    environment = {**container.environment, "BENTOML_HOME": "/bentoml"}
    return replace(container, environment=environment, mounts=mounts, **changes)


def run(container: Container, *commands: str) -> list[tuple[int, str]]:
    """Run commands one after another, even after a failure; return the exit code and the output of each."""
    script = "\n".join(f'async-bento {command} 2>&1; echo "=$?="' for command in commands)
    done = container.run("sh", "-c", script)
    assert done.stderr == ""
    found = done.stdout.split("=\n")[:-1]
    return [(int(code), text.strip()) for text, _, code in (each.rpartition("=") for each in found)]


# No home


def test_no_home_list_and_pull_output(container, volume):
    os.chown(volume, USER, USER)
    in_directory = replace(container, mounts=(Mount("/data", volume),))
    found = run(in_directory, "list", "ls svc:v1", "cat svc:v1 src/service.py", "pull svc:v1 --output /data/svc")
    assert [code for code, _ in found] == [0, 0, 0, 0], found
    assert found[2][1] == "pass"
    assert (volume / "svc" / "bento.yaml").exists()


def test_no_home_names_variable(container):
    reason = "cannot find the local store in ~/bentoml: there is no such home directory."
    assert (
        run(container, "pull svc:v1", "pull svc", "push svc:v1", "login")
        == [(2, f"Error: {reason} Set BENTOML_HOME to an absolute path.")] * 4
    )


def test_read_only_home_pull_remedy(container):
    """Docker sets `HOME=/` for a user without a name."""
    at_root = replace(container, environment={**container.environment, "HOME": "/"})
    (pulled,) = run(at_root, "pull svc:v1")
    reason = "cannot pull svc:v1: cannot write to /bentoml/bentos: Read-only file system."
    assert pulled == (1, f"Error: {reason} {REMEDY}")


def test_read_only_home_login_remedy(container):
    at_root = replace(container, environment={**container.environment, "HOME": "/"})
    login = "async-bento login --name x --endpoint $BENTO_CLOUD_API_ENDPOINT --api-token-stdin"
    done = at_root.run("sh", "-c", f'echo "$BENTO_CLOUD_API_KEY" | {login}')
    remedy = "Set BENTOML_HOME to a directory that this user can write."
    assert done.returncode == 2
    assert done.stderr.endswith(f"Error: cannot write /bentoml/.yatai.yaml: Read-only file system. {remedy}\n")


# One writable mount only


def test_read_only_root_needs_one_mount(container):
    commands = [
        "pull svc:v1 --with-models",
        "pull svc",
        "verify svc:v1",
        "push svc:v1 --force",
        "store delete svc:v2 --yes",
        "store prune",
        "doctor",
    ]
    found = run(mounted(container, None), *commands)
    assert [code for code, _ in found] == [0] * len(commands), found
    assert "WARNING" not in "".join(text for _, text in found)


# A volume of another user


def test_root_volume_serves_any_user(container, volume, home):
    """An init container of root fills the volume, and the next container mounts it for reading."""
    (filled,) = run(mounted(container, volume, user=0), "pull svc:v1 --with-models")
    assert filled[0] == 0, filled
    reader = mounted(container, volume, is_read_only=True)
    read = reader.run("cat", "/bentoml/bentos/svc/v1/src/service.py", "/bentoml/models/mod/m1/model.yaml")
    assert read.returncode == 0, read.stderr
    commands = ["pull svc:v1 --with-models", "store list", "verify svc:v1", "push svc:v1", "push svc:v1 --force"]
    found = run(reader, *commands)
    assert [code for code, _ in found] == [0] * len(commands), found
    assert found[0][1].splitlines()[-1] == "svc:v1 is in /bentoml/bentos/svc/v1"
    assert contents(volume / "bentos" / "svc" / "v1") == contents(home / "bentos" / "svc" / "v1")


@pytest.mark.parametrize(("is_read_only", "reason"), [(True, "Read-only file system"), (False, "Permission denied")])
def test_volume_not_writable_remedy(container, volume, is_read_only, reason):
    run(mounted(container, volume, user=0), "pull svc:v1")
    probe = "/bentoml/bentos/.async-bento-probe"
    pulled, pushed, deleted, checked = run(
        mounted(container, volume, is_read_only=is_read_only),
        "pull svc",
        "push svc:v1 --force --progress none",
        "store delete svc:v1 --yes",
        "doctor",
    )
    message = f"cannot write to /bentoml/bentos: {reason}: {probe}. {REMEDY}"
    assert pulled == (1, f"Error: cannot pull svc:v2: {message}")
    assert pushed[0] == 0
    assert f"WARNING: an interrupted push of svc:v1 cannot be resumed: {message}" in pushed[1]
    assert deleted == (1, f"Error: {message}")
    assert checked[0] == 1
    assert f"FAIL  store:    {message}" in checked[1]


@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_group_volume_follows_umask(container, volume, umask):
    """Kubernetes gives a volume to the group `fsGroup`, with set-gid; files follow the umask of their container."""
    os.chown(volume, 0, TEAM)
    volume.chmod(0o2775)
    first = mounted(container, volume, user=0, groups=(TEAM,), umask=umask)
    second = mounted(container, volume, groups=(TEAM,), umask=umask)
    assert run(first, "pull svc:v1")[0][0] == 0
    found = run(second, "pull svc:v1", "pull svc", "store delete svc:v1 --yes")
    is_shared = umask == 0o002
    assert [code for code, _ in found] == [0, *([0, 0] if is_shared else [1, 1])], found
    assert is_shared or REMEDY in found[1][1]
    assert (volume / "bentos" / "svc" / "v2").exists() == is_shared
    assert {path.stat().st_gid for path in (volume / "bentos").rglob("*")} == {TEAM}


# Items in the image


def test_image_layer_replace_delete(container, volume, home):
    """A directory of a lower layer cannot be renamed: an overlayfs answers EXDEV."""
    make_bento(volume, files={"old": b"old"})
    (volume / "bentos" / "svc" / "latest").write_text("v1")
    environment = {**container.environment, "BENTOML_HOME": str(volume)}
    image = replace(container, user=0, environment=environment, has_read_only_root=False)
    script = [
        "pull svc:v1 --force",
        "verify svc:v1",
        "pull svc:v2",
        "store delete svc:v1 --yes",
        "store list",
        "store prune",
    ]
    found = run(image, *script)
    assert [code for code, _ in found] == [0] * len(script), found
    assert "the same as in the registry" in found[1][1]
    assert [line.split()[0] for line in found[4][1].splitlines()] == ["TAG", "svc:v2"]
    assert contents(volume / "bentos" / "svc" / "v1")["old"] == b"old"  # the layer is unchanged


def test_image_layer_read_only_root(container, volume):
    """The build of the image has pulled the bento."""
    make_bento(volume)
    (volume / "bentos" / "svc" / "latest").write_text("v1")
    image = replace(container, environment={**container.environment, "BENTOML_HOME": str(volume)})
    found = run(image, "store list", "pull svc:v1", "push svc:v1")
    assert [code for code, _ in found] == [0, 0, 0], found


# Staging


def test_staging_no_tmp_names_tmpdir(tmp_path, monkeypatch):
    """A mount without colons in names, below a directory that cannot be written, in a container without `/tmp`."""

    def refuse() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/']")

    monkeypatch.setattr("async_bento.store.places._on_filesystem_of", lambda base: ())
    monkeypatch.setattr("async_bento.store.places.is_writable", lambda path: False)
    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    reason = r"cannot stage items for .*: no temporary directory is writable\. Set TMPDIR to a directory that is\."
    with pytest.raises(StoreError, match=reason), BentoStore(tmp_path / "bentos").stage():
        pytest.fail("nothing may be staged")
