"""`async-bento registry serve`: a registry of one's own."""

from __future__ import annotations

import logging
import signal
from typing import Literal

import click

from async_bento.cli.options import asynchronous


@click.group()
def registry() -> None:
    """Run a registry of your own."""


@registry.command()
@click.option("--root", type=click.Path(file_okay=False), help="A directory where everything is kept.")
@click.option("--s3", "bucket", metavar="BUCKET", help="A bucket where everything is kept, instead of a directory.")
@click.option("--s3-endpoint", metavar="URL", help="Where the bucket is, when it is not at AWS.")
@click.option("--s3-public-endpoint", metavar="URL", help="Where clients find the bucket, when that is elsewhere.")
@click.option("--s3-prefix", metavar="PREFIX", help="What all keys in the bucket begin with.")
@click.option("--port", type=click.IntRange(0, 65535), default=3000, show_default=True, help="0 for any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; this machine alone by default.")
@click.option(
    "--transmission",
    type=click.Choice(["presigned_url", "proxy", "auto"]),
    default="presigned_url",
    show_default=True,
    help="Which way the bytes go: in presigned parts, through the registry's API, or in one presigned PUT.",
)
@asynchronous
async def serve(
    root: str | None,
    bucket: str | None,
    s3_endpoint: str | None,
    s3_public_endpoint: str | None,
    s3_prefix: str | None,
    port: int,
    host: str,
    transmission: Literal["presigned_url", "proxy", "auto"],
) -> None:
    """Run a registry in the foreground, until Ctrl-C.

    \b
    Examples:
      async-bento registry serve --root /srv/bentos
      async-bento registry serve --s3 my-bucket --s3-endpoint http://127.0.0.1:9000
    """
    import asyncio

    from async_bento.registry.s3_backend import S3Bucket
    from async_bento.registry.server import LocalRegistry

    if (root is None) == (bucket is None):
        raise click.UsageError("it needs either --root or --s3")
    if bucket is None and (s3_endpoint or s3_public_endpoint or s3_prefix):
        raise click.UsageError("--s3-endpoint, --s3-public-endpoint and --s3-prefix go with --s3")
    where: str | S3Bucket = root or ""
    if bucket is not None:
        where = S3Bucket(bucket, endpoint=s3_endpoint, public_endpoint=s3_public_endpoint, prefix=s3_prefix or "")
        logging.getLogger("botocore").setLevel(logging.INFO)  # what it would say at -vv holds session tokens
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with LocalRegistry(where, transmission=transmission, host=host, port=port) as local:
        click.echo(f"The registry in {where} listens on {local.endpoint}. Ctrl-C stops it. Clients need:", err=True)
        click.echo(f"export BENTO_CLOUD_API_ENDPOINT={local.endpoint}")
        click.echo(f"export BENTO_CLOUD_API_KEY={local.api_token}")
        await stop.wait()
    click.echo("The registry has stopped.", err=True)
