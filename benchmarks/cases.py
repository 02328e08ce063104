"""The benchmark cases and their targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Direction = Literal["push", "pull", "list"]
Transmission = Literal["presigned_url", "proxy", "auto"]

MiB = 1024 * 1024
GiB = 1024 * MiB

OURS = "async-bento"
UNVERIFIED = "async-bento, verify off"
THEIRS = "bentoml"
CLIENTS = (OURS, THEIRS)
TAR_TOOLS = ("curl", "rclone", "obstore", "boto3")
"""Tools that copy an existing tar."""

LOOP = "loop"
LOOP_MD5 = "loop, MD5"
LOOP_SENDFILE = "loop, sendfile"
LOOP_SENDFILE_MD5 = "loop, sendfile, MD5"
LOOPS = (LOOP_MD5, LOOP, LOOP_SENDFILE_MD5, LOOP_SENDFILE)
"""The peers of `loop.py`, which pushes only."""

TAR_CURL = "tar and curl"
"""`tar c | curl -T -` or `curl | tar x`."""

LIBRARIES = "import of aiohttp, pydantic and click"

PEERS = (OURS, UNVERIFIED, THEIRS, *LOOPS, TAR_CURL, *TAR_TOOLS, LIBRARIES)
HASHING = (OURS, LOOP_MD5, LOOP_SENDFILE_MD5)
"""The peers that hash all bytes of a push with MD5."""


@dataclass(frozen=True)
class Link:
    """A network link; the rate is per connection, as object storages and distant regions limit it."""

    round_trip: float
    rate: float = 0.0


@dataclass(frozen=True)
class Target:
    """A target for a ratio of medians: `peer` divided by `against`."""

    direction: str
    measure: Literal["wall", "cpu"]
    at_most: float
    peer: str = OURS
    against: str = THEIRS


@dataclass(frozen=True)
class Case:
    """An item, the link, the transmission strategy and the peers of one benchmark; sizes in bytes."""

    name: str
    title: str
    size: int
    files: int = 1
    models: int = 0
    link: Link | None = None
    transmission: Transmission = "presigned_url"
    directions: tuple[Direction, ...] = ("push", "pull")
    is_there: bool = False
    tls: bool = False
    peers: tuple[str, ...] = CLIENTS
    targets: tuple[Target, ...] = ()

    def scaled(self, by: float) -> Case:
        """Return the case with a share of its bytes, or of its files if there are several."""
        if self.files > 1:
            return replace(self, files=max(1, round(self.files * by)))
        return replace(self, size=max(1000, round(self.size * by)))


NEAR = Link(0.040, 20e6)
FAR = Link(0.100, 5e6)

CASES = (
    Case(
        "far-256MiB",
        "One file of 256 MiB, 100 ms, 5 MB/s per connection",
        256 * MiB,
        link=FAR,
        targets=(Target("push", "wall", 0.33), Target("pull", "wall", 0.10)),
    ),
    Case(
        "50-models-there",
        "A bento with 50 models, all already pushed, 100 ms per call",
        1000,
        models=50,
        link=Link(0.100),
        directions=("push",),
        is_there=True,
        targets=(Target("push", "wall", 0.20),),
    ),
    Case(
        "near-512MiB",
        "One file of 512 MiB, 40 ms, 20 MB/s per connection",
        512 * MiB,
        link=NEAR,
        targets=(Target("push", "wall", 0.50), Target("pull", "wall", 0.10)),
    ),
    Case(
        "loopback-2GiB",
        "One file of 2 GiB, loopback",
        2 * GiB,
        peers=(OURS, UNVERIFIED, THEIRS, *TAR_TOOLS),
        targets=(
            Target("push", "wall", 0.65),
            Target("push", "wall", 0.55, peer=UNVERIFIED),
            Target("push", "cpu", 0.60),
            Target("push", "cpu", 0.30, peer=UNVERIFIED),
            Target("pull", "wall", 0.22),
            Target("pull", "wall", 0.80, against="curl"),
            Target("pull", "cpu", 0.22),
        ),
    ),
    Case(
        "loopback-20000-files",
        "20,000 files of 20 kB, loopback",
        20_000,
        files=20_000,
        targets=(
            Target("push", "wall", 0.38),
            Target("push", "cpu", 0.38),
            Target("pull", "wall", 0.35),
            Target("pull", "cpu", 0.45),
        ),
    ),
    Case(
        "near-6-models",
        "A bento with 6 models of 256 MiB, 40 ms, 20 MB/s per connection",
        256 * MiB,
        models=6,
        link=NEAR,
        targets=(Target("push", "wall", 0.55), Target("pull", "wall", 0.10)),
    ),
    Case(
        "proxy-512MiB",
        "One file of 512 MiB through the registry, loopback",
        512 * MiB,
        transmission="proxy",
        targets=(Target("push", "wall", 1.0), Target("pull", "wall", 1.0)),
    ),
    Case(
        "one-put-512MiB",
        "One file of 512 MiB in one presigned PUT, loopback",
        512 * MiB,
        transmission="auto",
        targets=(Target("push", "wall", 1.0), Target("pull", "wall", 1.0)),
    ),
)

FREE_PEERS = (OURS, UNVERIFIED, THEIRS, LOOP_MD5, LOOP, TAR_CURL, "curl", "rclone", "obstore")


def _free(scheme: str, what: str, size: int, files: int, *targets: Target) -> Case:
    sendfile = (LOOP_SENDFILE_MD5, LOOP_SENDFILE) if scheme == "http" and files == 1 else ()
    return Case(
        f"{scheme}-{'one-file' if files == 1 else 'many-files'}",
        f"{what}, {scheme}",
        size,
        files=files,
        tls=scheme == "https",
        peers=(*FREE_PEERS, *sendfile),
        targets=targets,
    )


FREE_CASES = (
    _free(
        "http",
        "One file of 1 GiB",
        GiB,
        1,
        Target("push", "wall", 0.85, against=LOOP_MD5),
        Target("push", "wall", 1.05, peer=UNVERIFIED, against=TAR_CURL),
        Target("pull", "wall", 0.95, against=TAR_CURL),
    ),
    _free(
        "https",
        "One file of 1 GiB",
        GiB,
        1,
        Target("push", "wall", 1.10, against=LOOP_MD5),
        Target("push", "wall", 1.15, peer=UNVERIFIED, against=TAR_CURL),
        Target("pull", "wall", 0.95, against=TAR_CURL),
    ),
    _free(
        "http",
        "20,000 files of 20 kB",
        20_000,
        20_000,
        Target("push", "wall", 1.10, against=LOOP_MD5),
        Target("push", "wall", 0.50),
        Target("pull", "wall", 1.50, against=TAR_CURL),
    ),
    _free(
        "https",
        "20,000 files of 20 kB",
        20_000,
        20_000,
        Target("push", "wall", 1.10, against=LOOP_MD5),
        Target("push", "wall", 0.45),
        Target("pull", "wall", 1.50, against=TAR_CURL),
    ),
    Case(
        "list",
        "A command that lists the bentos of a registry",
        1000,
        directions=("list",),
        peers=(OURS, THEIRS, LIBRARIES),
        targets=(Target("list", "cpu", 1.50, against=LIBRARIES),),
    ),
)
"""The cases of `benchmarks.free`, on a storage that costs next to nothing."""

COPIES = ("push", "pull", "copy", "rclone copyto")
READS = ("ls", "rclone cat and tar")
LISTS = (*READS, "rclone archive list")
"""`rclone archive list` sends a request per file: with 10,000 files it takes a quarter of an hour."""

REMOTE_CASES = (
    Case("far", "One file of 256 MiB, 100 ms, 5 MB/s per connection", 256 * MiB, link=FAR, peers=COPIES),
    Case("near", "One file of 512 MiB, 40 ms, 20 MB/s per connection", 512 * MiB, link=NEAR, peers=COPIES),
    Case("loopback", "One file of 512 MiB, loopback", 512 * MiB, peers=COPIES),
    Case("file", "One file of 2 GiB, 40 ms, 20 MB/s per connection", 2 * GiB, link=NEAR, peers=LISTS),
    Case("files", "10,000 files of 20 kB, 40 ms, 20 MB/s per connection", 20_000, 10_000, link=NEAR, peers=READS),
)

START = "start"
START_TITLE = "Interpreter start and import"
START_TARGETS = (Target("import", "wall", 0.25), Target("--version", "wall", 0.25))

LADDERS = {
    "bytes": {size: Case("", "", size, peers=(OURS,)) for size in (64 * MiB, 256 * MiB, GiB, 4 * GiB, 16 * GiB)},
    "files": {count: Case("", "", 4000, files=count, peers=(OURS,)) for count in (1, 100, 1000, 10_000, 100_000)},
    "models": {count: Case("", "", MiB, models=count, peers=(OURS,)) for count in (1, 10, 50, 200)},
}
"""The cases of each axis by amount."""


def steps(largest: float = 1.0) -> list[tuple[str, int, Case]]:
    """List the axis, the amount and the case of each scale step up to a share of the largest."""
    return [
        (name, much, case)
        for name, ladder in LADDERS.items()
        for much, case in ladder.items()
        if much <= largest * max(ladder)
    ]
