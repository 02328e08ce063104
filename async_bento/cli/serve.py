"""`async-bento registry serve`: run a registry."""

from __future__ import annotations

import logging
import shlex
import sys
from typing import TYPE_CHECKING, Literal

import click

from async_bento._core import platform
from async_bento._core.garbage import resume_collection
from async_bento.cli.access_log import access_log
from async_bento.cli.mirror import mirror_options
from async_bento.cli.options import asynchronous, parse_size
from async_bento.cli.registry import storage_options
from async_bento.cli.retention import parse_age
from async_bento.cli.signals import STOPS, add_handler, is_ignored

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.cli.mirror import MirrorOptions
    from async_bento.cli.registry import Places


@click.command()
@storage_options
@mirror_options
@click.option("--s3-public-endpoint", metavar="URL", help="URL at which clients reach the S3 service, if different.")
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
    show_envvar=True,
    help="URL at which clients reach the registry behind a proxy, with its path.",
)
@click.option(
    "--forwarded-allow-ips",
    metavar="ADDRESSES",
    default="",
    envvar="ASYNC_BENTO_REGISTRY_FORWARDED_ALLOW_IPS",
    show_envvar=True,
    help="Proxies whose X-Forwarded headers name that URL and the address of the client: IP addresses and networks "
    "with commas, or *.",
)
@click.option("--tls-cert", metavar="FILE", help="Certificate with its chain (PEM), to serve https.")
@click.option("--tls-key", metavar="FILE", help="Private key (PEM), if it is not in the file of the certificate.")
@click.option(
    "--token-file",
    metavar="FILE",
    envvar="ASYNC_BENTO_REGISTRY_TOKEN_FILE",
    show_envvar=True,
    help="File with the first token; created with a new one if it does not exist. By default in --root.",
)
@click.option(
    "--transmission",
    type=click.Choice(["presigned_url", "proxy", "auto"]),
    default="presigned_url",
    show_default=True,
    help="How clients upload: parts to presigned URLs, one request through the registry's API, or one presigned PUT.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Seconds to wait for running requests when the registry stops.",
)
@click.option(
    "--access-log",
    "log_form",
    type=click.Choice(["text", "json"]),
    help="Print a line per request on standard output.",
)
@click.option(
    "--min-free",
    callback=parse_size,
    metavar="SIZE",
    help="Refuse uploads that would leave less than SIZE free on the disk, like 20G.",
)
@click.option("--pages/--no-pages", default=True, show_default=True, help="Serve web pages with the bentos and models.")
@click.option("--immutable", is_flag=True, help="Refuse forced pushes of versions that are complete.")
@click.option(
    "--prune-keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Every hour, delete all but the newest N complete versions of each repository.",
)
@click.option(
    "--prune-older-than",
    callback=parse_age,
    metavar="AGE",
    help="Every hour, delete versions not pushed within AGE, like 30d; with --prune-keep, only if both allow it.",
)
@asynchronous
async def serve(
    places: Places,
    mirror: MirrorOptions,
    s3_public_endpoint: str | None,
    port: int,
    host: str,
    public_url: str | None,
    forwarded_allow_ips: str,
    tls_cert: str | None,
    tls_key: str | None,
    token_file: str | None,
    transmission: Literal["presigned_url", "proxy", "auto"],
    grace: float,
    log_form: Literal["text", "json"] | None,
    min_free: int | None,
    pages: bool,
    immutable: bool,
    prune_keep: int | None,
    prune_older_than: float | None,
) -> None:
    """Run a registry in the foreground until Ctrl-C.

    \b
    Examples:
      async-bento registry serve --root /srv/bentos
      async-bento registry serve --root /srv/bentos --s3 my-bucket --s3-endpoint http://127.0.0.1:9000
      async-bento registry serve --database postgresql://bento@db.example/bentos --s3 my-bucket --token-file token
      async-bento registry serve --root /srv/mirror --upstream https://registry.example.com --upstream-token-file token
    """
    import asyncio

    from async_bento.registry.connections import raise_descriptor_limit
    from async_bento.registry.server import LocalRegistry

    resume_collection()
    bucket = places.bucket(s3_public_endpoint)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOPS:
        if not is_ignored(number):
            add_handler(loop, number, stop.set)
    # Before the server computes its limit of connections.
    raise_descriptor_limit()
    registry_log = logging.getLogger("async_bento.registry")
    registry_log.setLevel(min(registry_log.getEffectiveLevel(), logging.INFO))  # what the cleanup deletes
    with access_log(log_form) as log:
        served = LocalRegistry(
            places.root,
            database=places.database,
            bucket=bucket,
            transmission=transmission,
            host=host,
            port=port,
            public_url=public_url,
            forwarded_allow_ips=forwarded_allow_ips.split(","),
            tls_cert=tls_cert,
            tls_key=tls_key,
            token_file=token_file,
            grace=grace,
            pages=pages,
            access_log=log,
            min_free=min_free or 0,
            immutable=immutable,
            prune_keep=prune_keep,
            prune_older_than=prune_older_than,
            **mirror.arguments(),
        )
        async with served as server:
            where = f"Serving {bucket or places.root}{mirror} on {server.endpoint}."
            click.echo(f"{where} Press Ctrl-C to stop. Clients need:", err=True)
            for line in _settings(server.public_url, server.token_file):
                click.echo(line)
            if server.has_new_token and sys.stderr.isatty():
                click.echo(f"The first token, in the file and shown only now: {server.api_token}", err=True)
            await stop.wait()
    click.echo("The registry has stopped.", err=True)


def _settings(endpoint: str, token_file: Path | None) -> list[str]:
    """The lines that set the variables of a client: for PowerShell on Windows, for a POSIX shell elsewhere."""
    token_file = token_file and token_file.absolute()  # a client may run in another directory
    if platform.IS_WINDOWS:
        lines, key = [f'$env:BENTO_CLOUD_API_ENDPOINT = "{endpoint}"'], '$env:BENTO_CLOUD_API_KEY = Get-Content "{}"'
        return lines if token_file is None else [*lines, key.format(token_file)]
    lines, key = [f"export BENTO_CLOUD_API_ENDPOINT={endpoint}"], 'export BENTO_CLOUD_API_KEY="$(cat {})"'
    return lines if token_file is None else [*lines, key.format(shlex.quote(str(token_file)))]
