"""The commands of the compared clients and tools, with default settings except where noted."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import LIBRARIES, LOOPS, OURS, TAR_CURL, TAR_TOOLS, THEIRS, UNVERIFIED
from benchmarks.servers import BIN, BUCKET, credentials

if TYPE_CHECKING:
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
OPTIONS = {"allow_http": True, "allow_invalid_certificates": True, "timeout": "1h"}
store = S3Store(sys.argv[3], endpoint=sys.argv[2], client_options=OPTIONS)
if sys.argv[1] == "push":
    with open(sys.argv[5], "rb") as file:
        obstore.put(store, sys.argv[4], file)
else:
    with open(sys.argv[5], "wb") as file:
        for piece in obstore.get(store, sys.argv[4]).stream(min_chunk_size=10 * 1024 * 1024):
            file.write(piece)
"""

LOOP = Path(__file__).with_name("loop.py")
PUSH_TAR = 'tar c -C "$1" . | curl --silent --show-error --fail --upload-file - "$2"'
PULL_TAR = 'mkdir -p "$1" && curl --silent --show-error --fail "$2" | tar x -C "$1"'

IMPORTS = {OURS: "import async_bento", THEIRS: "import bentoml"}
FLOORS = {OURS: "from async_bento import BentoAPI", THEIRS: "import bentoml; bentoml.push, bentoml.models.push"}
"""The imports of a program that pushes and pulls; both packages import lazily. Memory is reported above these."""


@dataclass(frozen=True)
class Errand:
    """One command of a peer: the item, the object key and tar for tools that copy a tar, the home, the servers."""

    direction: Direction
    kind: str
    tag: str
    key: str
    tar: Path
    home: Path
    site: Site

    @property
    def directory(self) -> Path:
        """The directory of the item in the store."""
        return self.home / "bentoml" / self.kind / self.tag.replace(":", "/")

    @property
    def url(self) -> str:
        """The presigned URL of the tar."""
        return self.site.presigned("put_object" if self.direction == "push" else "get_object", self.key)


def is_client(peer: str) -> bool:
    """Whether a peer transfers the files of bentos and models instead of an existing tar."""
    return peer not in TAR_TOOLS


def command(peer: str, errand: Errand) -> list[str]:
    """Return the command of a peer."""
    s3, tar, python = errand.site.s3, str(errand.tar), sys.executable
    push = errand.direction == "push"
    match peer:
        case _ if peer == LIBRARIES:
            return [python, "-c", "import aiohttp, pydantic, click"]
        case "curl":
            option = "--upload-file" if push else "--output"
            return ["curl", "--silent", "--show-error", "--fail", option, tar, errand.url]
        case _ if peer == TAR_CURL:
            script = PUSH_TAR if push else PULL_TAR
            return ["bash", "-o", "pipefail", "-c", script, "", str(errand.directory), errand.url]
        case "rclone":
            ends = [tar, f"bench:{BUCKET}/{errand.key}"]
            return [str(BIN / "rclone"), "copyto", *(ends if push else reversed(ends))]
        case "boto3":
            return [python, "-c", BOTO3, errand.direction, s3, BUCKET, errand.key, tar]
        case "obstore":
            return [python, "-c", OBSTORE, errand.direction, s3, BUCKET, errand.key, tar]
        case _ if peer in LOOPS:
            modes = peer.lower().split(", ")[1:]
            return [python, str(LOOP), str(errand.directory), errand.tag, *modes]
        case _:
            name = "bentoml" if peer == THEIRS else "async-bento"
            if errand.direction == "list":  # bentoml lists its local store
                return [str(BIN / name), "list"]
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
        if errand.site.client is None:  # the storage keeps no upload
            options |= {"NO_HEAD": "true", "NO_CHECK_BUCKET": "true"}
            if errand.direction == "push":
                variables["RCLONE_MULTI_THREAD_STREAMS"] = "0"  # this copy in parts asks for the object in any case
        variables.update({f"RCLONE_CONFIG_BENCH_{name}": value for name, value in options.items()})
    if errand.site.certificate is not None:
        variables["SSL_CERT_FILE"] = str(errand.site.certificate)
    return variables


def bare_environment(home: Path) -> dict[str, str]:
    """Return an environment with its own home and temporary directory and without user settings."""
    temporary = home / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    # PYTHONPATH selects the async-bento to measure.
    return {
        **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "LANG": "C.UTF-8",
    }
