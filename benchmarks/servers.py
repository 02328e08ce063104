"""SeaweedFS, a registry on it, and the link between them and the clients."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.registry.seaweed import seaweed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.cases import Link, Transmission

BUCKET = "bench"
USER = "admin"
REGION = "us-east-1"
VOLUME_SIZE = 1024
"""The volume size of SeaweedFS in MiB; with small volumes, a push of several GiB mostly creates volumes."""

BIN = Path(sys.executable).parent
LINK = Path(__file__).with_name("link.py")


@dataclass(frozen=True)
class Site:
    """The running servers: the endpoints for clients, the token, and a bucket client that bypasses the link.

    `certificate` is that of the bucket's server if the system does not trust it.
    """

    endpoint: str
    token: str
    s3: str
    client: Any
    certificate: Path | None = None

    def presigned(self, method: str, key: str) -> str:
        """Return a presigned URL of an object for clients."""
        return str(s3_client(self.s3).generate_presigned_url(method, Params={"Bucket": BUCKET, "Key": key}))


def s3_client(endpoint: str) -> Any:
    """Return a client of the bucket's server."""
    import boto3

    secrets = {"aws_access_key_id": USER, "aws_secret_access_key": USER}
    return boto3.client("s3", endpoint_url=endpoint, region_name=REGION, **secrets)


def credentials() -> dict[str, str]:
    """Return the environment of a process that connects to the bucket's server."""
    return {
        "AWS_ACCESS_KEY_ID": USER,
        "AWS_SECRET_ACCESS_KEY": USER,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class NoServerError(Exception):
    """A server did not start."""


@contextmanager
def running(
    command: list[str], lines: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[list[str]]:
    """Run a server and yield the lines that it prints at its start; raise NoServerError if it prints fewer."""
    variables = {**os.environ, **(environment or {})}
    with (
        log.open("wb") as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=variables) as process,
    ):
        assert process.stdout is not None
        try:
            printed = [process.stdout.readline().strip() for _ in range(lines)]
            if not all(printed):
                raise NoServerError(f"{' '.join(command)}: {log.read_text()[-2000:]}")
            yield printed
        finally:
            process.terminate()


def read_token(root: Path) -> str:
    """Return the first token of a registry, which its start has written."""
    return (root / "api_token").read_text().strip()


@contextmanager
def linked(url: str, link: Link | None, log: Path) -> Iterator[str]:
    """Put a link in front of a server and yield the URL of the link."""
    if link is None:
        yield url
        return
    numbers = ["--round-trip", str(link.round_trip * 1e3), "--rate", str(link.rate / 1e6)]
    command = [sys.executable, str(LINK), "--to", url.partition("//")[2], *numbers]
    with running(command, 1, log) as (port,):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def site(directory: Path, link: Link | None, transmission: Transmission) -> Iterator[Site]:
    """Run SeaweedFS, a registry on a bucket of it, and the link."""
    with ExitStack() as stack:
        weed = stack.enter_context(seaweed(directory, volume_size=VOLUME_SIZE)).endpoint
        client = s3_client(weed)
        client.create_bucket(Bucket=BUCKET)
        s3 = stack.enter_context(linked(weed, link, directory / "link-s3.log"))
        command = [str(BIN / "async-bento"), "registry", "serve", "--root", str(directory / "registry")]
        command += ["--s3", BUCKET, "--s3-endpoint", weed]
        command += ["--s3-public-endpoint", s3, "--transmission", transmission, "--port", "0"]
        lines = stack.enter_context(running(command, 2, directory / "registry.log", credentials()))
        endpoint, token = lines[0].partition("=")[2], read_token(directory / "registry")
        yield Site(stack.enter_context(linked(endpoint, link, directory / "link.log")), token, s3, client)
