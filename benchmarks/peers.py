"""Who takes part: what each of them runs to push or pull. All have their defaults, but for what is named here."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.cases import OURS, TAR_TOOLS, THEIRS, UNVERIFIED
from benchmarks.servers import BIN, BUCKET, credentials

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.cases import Direction
    from benchmarks.servers import Site

BOTO3 = """
import sys, boto3
client = boto3.client("s3", endpoint_url=sys.argv[2])
if sys.argv[1] == "push":
    client.upload_file(sys.argv[5], sys.argv[3], sys.argv[4])
else:
    client.download_file(sys.argv[3], sys.argv[4], sys.argv[5])
"""

OBSTORE = """
import sys, obstore
from obstore.store import S3Store
store = S3Store(sys.argv[3], endpoint=sys.argv[2], client_options={"allow_http": True, "timeout": "1h"})
if sys.argv[1] == "push":
    with open(sys.argv[5], "rb") as file:
        obstore.put(store, sys.argv[4], file)
else:
    with open(sys.argv[5], "wb") as file:
        for piece in obstore.get(store, sys.argv[4]).stream(min_chunk_size=10 * 1024 * 1024):
            file.write(piece)
"""

IMPORTS = {OURS: "import async_bento", THEIRS: "import bentoml"}
FLOORS = {OURS: "from async_bento import BentoAPI", THEIRS: "import bentoml; bentoml.push, bentoml.models.push"}
"""What a program imports that pushes and pulls, both packages being lazy; memory is told above what that takes."""


@dataclass(frozen=True)
class Errand:
    """What a peer has to do.

    Attributes:
        direction: Push or pull.
        kind: `bentos` or `models`.
        tag: Which.
        key: The object, for those who copy nothing but a tar.
        tar: The file it is copied from or to.
        home: The home directory, and whatever else it may write to.
        site: The servers.
    """

    direction: Direction
    kind: str
    tag: str
    key: str
    tar: Path
    home: Path
    site: Site


def is_client(peer: str) -> bool:
    """Whether a peer pushes and pulls items, rather than a tar."""
    return peer not in TAR_TOOLS


def command(peer: str, errand: Errand) -> list[str]:
    """What a peer runs.

    Args:
        peer: Who.
        errand: What for.

    Returns:
        The command.
    """
    s3, tar, python = errand.site.s3, str(errand.tar), sys.executable
    push = errand.direction == "push"
    match peer:
        case "curl":
            url = errand.site.presigned("put_object" if push else "get_object", errand.key)
            return ["curl", "--silent", "--show-error", "--fail", "--upload-file" if push else "--output", tar, url]
        case "rclone":
            ends = [tar, f"bench:{BUCKET}/{errand.key}"]
            return [str(BIN / "rclone"), "copyto", *(ends if push else reversed(ends))]
        case "boto3":
            return [python, "-c", BOTO3, errand.direction, s3, BUCKET, errand.key, tar]
        case "obstore":
            return [python, "-c", OBSTORE, errand.direction, s3, BUCKET, errand.key, tar]
        case _:
            name = "bentoml" if peer == THEIRS else "async-bento"
            words = ["models"] if errand.kind == "models" else []
            options = [] if push or errand.kind == "models" else ["--with-models"]
            return [str(BIN / name), *words, errand.direction, *options, errand.tag]


def environment(peer: str, errand: Errand) -> dict[str, str]:
    """All of a peer's environment.

    Args:
        peer: Who.
        errand: What for.

    Returns:
        The variables.
    """
    variables = bare_environment(errand.home)
    if is_client(peer):
        variables["BENTO_CLOUD_API_ENDPOINT"] = errand.site.endpoint
        variables["BENTO_CLOUD_API_KEY"] = errand.site.token
    else:
        variables.update(credentials())
    if peer == UNVERIFIED:
        variables["ASYNC_BENTO_TRANSFER_VERIFY"] = "0"
    if peer == "rclone":
        options = {"TYPE": "s3", "PROVIDER": "SeaweedFS", "ENDPOINT": errand.site.s3, "ENV_AUTH": "true"}
        variables.update({f"RCLONE_CONFIG_BENCH_{name}": value for name, value in options.items()})
    return variables


def bare_environment(home: Path) -> dict[str, str]:
    """An environment with a home and a place for temporary files, and with nothing of whoever runs the benchmark."""
    temporary = home / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "LANG": "C.UTF-8",
    }
