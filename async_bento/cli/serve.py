"""`async-bento registry serve`: run a registry."""

from __future__ import annotations

import logging
import signal
from typing import Literal

import click

from async_bento._core.garbage import resume_collection
from async_bento.cli.groups import Group
from async_bento.cli.options import asynchronous
from async_bento.cli.signals import is_ignored


@click.group(cls=Group)
def registry() -> None:
    """Run your own registry."""


@registry.command()
@click.option("--root", type=click.Path(file_okay=False), help="Directory for all data without another place.")
@click.option(
    "--database",
    metavar="URL",
    envvar="ASYNC_BENTO_REGISTRY_DATABASE",
    help="PostgreSQL database for the records, like postgresql://user:password@host/bentos.",
)
@click.option("--s3", "bucket", metavar="BUCKET", help="S3 bucket for the bytes.")
@click.option("--s3-endpoint", metavar="URL", help="URL of the S3 service, if it is not AWS.")
@click.option("--s3-public-endpoint", metavar="URL", help="URL at which clients reach the S3 service, if different.")
@click.option("--s3-prefix", metavar="PREFIX", help="Prefix of all keys in the bucket.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=3000,
    show_default=True,
    help="Port to listen on; 0 picks a free port.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--public-url",
    metavar="URL",
    envvar="ASYNC_BENTO_REGISTRY_PUBLIC_URL",
    help="URL at which clients reach the registry behind a proxy, with its path.",
)
@click.option(
    "--forwarded-allow-ips",
    metavar="ADDRESSES",
    default="",
    envvar="ASYNC_BENTO_REGISTRY_FORWARDED_ALLOW_IPS",
    help="Proxies whose X-Forwarded headers name that URL: IP addresses and networks with commas, or *.",
)
@click.option("--tls-cert", metavar="FILE", help="Certificate with its chain (PEM), to serve https.")
@click.option("--tls-key", metavar="FILE", help="Private key (PEM), if it is not in the file of the certificate.")
@click.option(
    "--transmission",
    type=click.Choice(["presigned_url", "proxy", "auto"]),
    default="presigned_url",
    show_default=True,
    help="How clients upload: parts to presigned URLs, one request through the registry's API, or one presigned PUT.",
)
@asynchronous
async def serve(
    root: str | None,
    database: str | None,
    bucket: str | None,
    s3_endpoint: str | None,
    s3_public_endpoint: str | None,
    s3_prefix: str | None,
    port: int,
    host: str,
    public_url: str | None,
    forwarded_allow_ips: str,
    tls_cert: str | None,
    tls_key: str | None,
    transmission: Literal["presigned_url", "proxy", "auto"],
) -> None:
    """Run a registry in the foreground until Ctrl-C.

    \b
    Examples:
      async-bento registry serve --root /srv/bentos
      async-bento registry serve --root /srv/bentos --s3 my-bucket --s3-endpoint http://127.0.0.1:9000
      async-bento registry serve --database postgresql://bento@db.example/bentos --s3 my-bucket
    """
    import asyncio

    from async_bento.registry.connections import raise_descriptor_limit
    from async_bento.registry.s3_bucket import S3Bucket
    from async_bento.registry.server import LocalRegistry

    resume_collection()
    for name in ("aiosqlite", "botocore"):
        logging.getLogger(name).setLevel(logging.INFO)  # their debug logs contain tokens
    if root is None and (database is None or bucket is None):
        raise click.UsageError("Pass --root, or both --database and --s3.")
    if bucket is None and (s3_endpoint or s3_public_endpoint or s3_prefix):
        raise click.UsageError("--s3-endpoint, --s3-public-endpoint and --s3-prefix require --s3.")
    storage: S3Bucket | None = None
    if bucket is not None:
        storage = S3Bucket(bucket, endpoint=s3_endpoint, public_endpoint=s3_public_endpoint, prefix=s3_prefix or "")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        if not is_ignored(number):
            loop.add_signal_handler(number, stop.set)
    raise_descriptor_limit()
    served = LocalRegistry(
        root,
        database=database,
        bucket=storage,
        transmission=transmission,
        host=host,
        port=port,
        public_url=public_url,
        forwarded_allow_ips=forwarded_allow_ips.split(","),
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    async with served as server:
        click.echo(f"Serving {storage or root} at {server.endpoint}. Press Ctrl-C to stop. Clients need:", err=True)
        click.echo(f"export BENTO_CLOUD_API_ENDPOINT={server.public_url}")
        click.echo(f"export BENTO_CLOUD_API_KEY={server.api_token}")
        await stop.wait()
    click.echo("The registry has stopped.", err=True)
