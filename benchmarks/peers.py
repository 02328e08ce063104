"""The commands of the compared clients and tools, with default settings except where noted."""

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
"""The imports of a program that pushes and pulls; both packages import lazily. Memory is reported above these."""


@dataclass(frozen=True)
class Errand:
    """One push or pull of a peer: the item, the object key and tar for tools that copy a tar, the home, the servers."""

    direction: Direction
    kind: str
    tag: str
    key: str
    tar: Path
    home: Path
    site: Site


def is_client(peer: str) -> bool:
    """Whether a peer transfers bentos and models instead of a tar."""
    return peer not in TAR_TOOLS


def command(peer: str, errand: Errand) -> list[str]:
    """Return the command of a peer."""
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
    """Return the whole environment of a peer."""
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
    """Return an environment with its own home and temporary directory and without user settings."""
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
