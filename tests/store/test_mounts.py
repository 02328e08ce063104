"""Stores on real file systems, mounted in a container: tmpfs, overlayfs, bind mounts, and those of FUSE programs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI
from tests.builders import KiB, contents, make_bento, make_model, random_bytes
from tests.store.containers import PROGRAMS, Container, Mount, containers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.registry import LocalRegistry

__all__ = ["containers"]

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "clusters.md"


@dataclass(frozen=True)
class Place:
    """A file system at `/place`.

    Fields:
        name: Its name, also in the guide.
        setup: Commands that mount it; `/volume` is an empty directory.
        programs: The programs of the commands.
        mounts: Mounts of the container, of `/volume`.
        has_links: Whether symbolic links can be made.
    """

    name: str
    setup: str = ""
    programs: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ("/volume",)
    has_links: bool = True


PLACES = [
    Place("disk", mounts=("/place",)),
    Place("tmpfs", "mount -t tmpfs tmpfs /place"),
    Place("bind mount", mounts=("/volume", "/place")),
    Place("mount at the store", "mkdir /place/models", mounts=("/volume", "/place/bentos")),
    Place(
        "overlay",
        "mount -t tmpfs tmpfs /layers; mkdir /layers/upper /layers/work\n"
        "mount -t overlay overlay -o lowerdir=/volume,upperdir=/layers/upper,workdir=/layers/work /place",
    ),
    Place("bindfs", "bindfs /volume /place", ("bindfs",)),
    Place(
        "sshfs",
        "printf '#!/bin/sh\\nexec /usr/lib/openssh/sftp-server\\n' > /usr/bin/no-ssh; chmod 755 /usr/bin/no-ssh\n"
        "sshfs -o ssh_command=/usr/bin/no-ssh localhost:/volume /place",
        ("sshfs", "/usr/lib/openssh/sftp-server"),
    ),
    Place(
        "rclone mount",
        "rclone mount --config /dev/null --vfs-cache-mode writes --cache-dir /layers --daemon --daemon-wait 20s "
        "/volume /place",
        ("rclone",),
        has_links=False,
    ),
    Place(
        "ntfs-3g",
        "truncate -s 64M /volume/image; mkntfs -Q -F /volume/image > /dev/null 2>&1\n"
        "ntfs-3g -o windows_names /volume/image /place",
        ("ntfs-3g", "mkntfs"),
    ),
]


@pytest.fixture
def volume() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def bento(served: LocalRegistry, home: Path) -> Path:
    """A pushed bento with a link, its model, and a newer version of the bento."""
    make_model(home)
    bento = make_bento(home, files={"src/a.py": b"pass", "weights": random_bytes(300 * KiB)}, models=["mod:m1"])
    (bento / "link").symlink_to("src/a.py")
    (bento / "src" / "same.py").hardlink_to(bento / "src" / "a.py")
    make_bento(home, "svc:v2", built="2025-01-01 00:00:00")
    with BentoAPI(progress=False) as api:
        api.push(["svc:v1", "svc:v2"])
    return bento


def as_parameter(place: Place) -> object:
    """A place of the suite, or one that `nox -s endurance` tries: each takes ten starts of the command."""
    marks = [] if place.name in {"tmpfs", "overlay"} else [pytest.mark.long]
    return pytest.param(place, id=place.name.replace(" ", "-"), marks=marks)


@pytest.fixture(params=map(as_parameter, PLACES))
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.param
    for name in found.programs:
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{name} is not installed")
    return found


COMMANDS = """
fail() { echo "failed: $*"; exit 1; }
async-bento pull svc:v1 --with-models 2>&1 || fail pull
async-bento pull svc 2>&1 || fail pull the newest
async-bento pull svc:v1 --force 2>&1 || fail replace
async-bento verify svc:v1 2>&1 || fail verify
async-bento push svc:v1 --force 2>&1 || fail push
async-bento store delete svc:v1 --yes 2>&1 || fail delete
async-bento pull svc:v1 > /out/first 2>&1 & first=$!
async-bento pull svc:v1 > /out/second 2>&1 & second=$!
wait $first || fail "first of two: $(cat /out/first)"
wait $second || fail "second of two: $(cat /out/second)"
async-bento store prune 2>&1 || fail prune
cp -r /place/. /out/place
"""


@pytest.mark.posix("mounts")
@pytest.mark.processes
@pytest.mark.long
@pytest.mark.usefixtures("containers")
def test_store_works_on_file_system(place: Place, bento: Path, volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    names = ("BENTO_CLOUD_API_ENDPOINT", "BENTO_CLOUD_API_KEY")
    path = os.pathsep.join([PROGRAMS, os.environ["PATH"], "/usr/sbin", "/sbin"])
    environment = {name: os.environ[name] for name in names} | {"BENTOML_HOME": "/place", "PATH": path}
    mounts = [Mount(path, volume) for path in place.mounts]
    container = Container(has_read_only_root=False, environment=environment, mounts=(*mounts, Mount("/out", out)))
    end = "cd /; umount /place" if place.setup.partition(" ")[0] not in {"", "mkdir"} else "true"
    script = f"set -e\nmkdir -p /place /layers\n{place.setup}\nset +e\n({COMMANDS})\ncode=$?\n{end}\nexit $code"
    done = container.run("sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    expected = contents(bento) | ({} if place.has_links else {"link": b"pass"})
    for name in ("bentos/svc/v1", "models/mod/m1", "bentos/svc/v2"):
        pulled = contents(out / "place" / name)
        assert pulled == (expected if name.endswith("v1") else contents(bento.parents[2] / name)), name
    left = [path.name for path in (out / "place").glob("**/async-bento-*")]
    assert left == []
    warnings = {line.partition(" in /")[0] for line in done.stdout.splitlines() if line.startswith("WARNING")}
    assert warnings == (set() if place.has_links else {"WARNING: no symbolic links can be made"})


def test_guide_lists_tried_mounts() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| yes \|", GUIDE.read_text(), re.MULTILINE)
    assert sorted(place.name for place in PLACES for row in rows if row.startswith(place.name)) == sorted(
        place.name for place in PLACES
    )
    assert len(rows) == len(PLACES)
