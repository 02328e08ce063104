"""`async-bento registry`: the commands that maintain a registry, and the options for its storage."""

from __future__ import annotations

import getpass
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, NoReturn, ParamSpec, TypeVar

import click

from async_bento._core.text import human_size
from async_bento.cli.groups import LazyGroup
from async_bento.cli.options import asynchronous, json_option
from async_bento.cli.output import print_json
from async_bento.cli.signals import cancel_on_signals
from async_bento.errors import BentoError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from tqdm import tqdm

    from async_bento.registry.backend import OpenBackend
    from async_bento.registry.backup import Copied
    from async_bento.registry.check import Damage
    from async_bento.registry.records.database import Database
    from async_bento.registry.s3_bucket import S3Bucket
    from async_bento.registry.tokens import Actor

P = ParamSpec("P")
T = TypeVar("T")

_REMEDY = "Push these again with --force, or restore them from a backup."


@dataclass(frozen=True)
class Places:
    """Where a registry keeps its data."""

    root: str | None
    database: str | None
    bucket_name: str | None
    s3_endpoint: str | None
    s3_prefix: str | None

    def __str__(self) -> str:
        return f"the registry in {self.root or f'the bucket {self.bucket_name}'}"

    def bucket(self, public_endpoint: str | None = None) -> S3Bucket | None:
        """Return the bucket; raise `UsageError` if the options contradict each other."""
        from async_bento.registry.s3_bucket import S3Bucket

        if self.root is None and (self.database is None or self.bucket_name is None):
            raise click.UsageError("Pass --root, or both --database and --s3.")
        if self.bucket_name is not None:
            return S3Bucket(
                self.bucket_name,
                endpoint=self.s3_endpoint,
                public_endpoint=public_endpoint,
                prefix=self.s3_prefix or "",
            )
        if self.s3_endpoint or public_endpoint or self.s3_prefix:
            raise click.UsageError("--s3-endpoint, --s3-public-endpoint and --s3-prefix require --s3.")
        return None

    @asynccontextmanager
    async def database_only(self) -> AsyncGenerator[Database]:
        """Open the database of a registry that exists, also while it runs; signals cancel the command from now on."""
        from async_bento.registry.loading import load_backend

        if self.root is None and self.database is None:
            raise click.UsageError("Pass --root or --database.")
        cancel_on_signals()
        root = None if self.root is None else Path(self.root)
        backend = await load_backend(root=root, database=self.database, bucket=None)
        async with backend.attached_database() as database:
            yield database

    @asynccontextmanager
    async def attached(self) -> AsyncGenerator[OpenBackend]:
        """Open the places of a registry that exists, also while it runs; signals cancel the command from now on."""
        from async_bento.registry.loading import load_backend

        cancel_on_signals()
        root = None if self.root is None else Path(self.root)
        backend = await load_backend(root=root, database=self.database, bucket=self.bucket())
        async with backend.attached() as opened:
            yield opened


def shell_actor() -> Actor:
    """Return who runs the command, for the audit log."""
    from async_bento.registry.tokens import Actor

    try:
        return Actor(f"shell:{getpass.getuser()}")
    except (KeyError, OSError, ImportError):  # a container's user may have no name; Windows has no `pwd`
        return Actor("shell")


def storage_options(command: Callable[Concatenate[Places, P], T]) -> Callable[..., T]:
    """Add the options that name the places of a registry, and pass them as the first argument."""

    @click.option(
        "--root",
        type=click.Path(file_okay=False),
        help="Directory of the registry: records, files and keys, except what --database and --s3 store.",
    )
    @click.option(
        "--database",
        metavar="URL",
        envvar="ASYNC_BENTO_REGISTRY_DATABASE",
        show_envvar=True,
        help="PostgreSQL database for the records, like postgresql://user:password@host/bentos.",
    )
    @click.option("--s3", "bucket_name", metavar="BUCKET", help="S3 bucket for the files.")
    @click.option("--s3-endpoint", metavar="URL", help="URL of the S3 service, if it is not AWS.")
    @click.option("--s3-prefix", metavar="PREFIX", help="Prefix of all keys in the bucket.")
    @wraps(command)
    def run(
        root: str | None,
        database: str | None,
        bucket_name: str | None,
        s3_endpoint: str | None,
        s3_prefix: str | None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return command(Places(root, database, bucket_name, s3_endpoint, s3_prefix), *args, **kwargs)

    return run


_COMMANDS = {
    "audit": "audit:audit",
    "backup": "registry:backup",
    "check": "registry:check",
    "prune": "retention:prune",
    "restore": "registry:restore",
    "serve": "serve:serve",
    "token": "token:token",
    "usage": "retention:usage",
}
"""All of them, since mkdocs-click lists either the commands that are imported on first use or the others."""


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def registry() -> None:
    """Run your own registry."""


def _bar(description: str) -> tqdm[NoReturn]:
    """Make a bar of bytes, which only a terminal shows."""
    from tqdm import tqdm

    return tqdm(desc=description, unit="B", unit_scale=True, unit_divisor=1024, leave=False, disable=None)


@asynchronous
async def _find_damage(places: Places, checked: Callable[[int, int], None]) -> list[Damage]:
    """Check a registry; `checked` gets the bytes of each item and those of all."""
    from async_bento.registry.check import find_damage

    async with places.attached() as opened:
        total = (await opened.blob_records.usage()).current
        return await find_damage(opened.blob_records, opened.blobs, lambda size: checked(size, total))


@click.command()
@storage_options
@json_option
@click.pass_context
def check(context: click.Context, places: Places, as_json: bool) -> None:
    """Compare all stored bytes with their records.

    On a disk, all bytes are read and their MD5s computed. A bucket reports the size and the ETag of each object. The
    registry may run meanwhile. The exit code is 1 if anything is damaged.

    \b
    Examples:
      async-bento registry check --root /srv/bentos
      async-bento registry check --database postgresql://bento@db.example/bentos --s3 my-bucket
    """
    sizes: list[int] = []
    with _bar("checking") as bar:

        def checked(size: int, total: int) -> None:
            sizes.append(size)
            bar.total = total
            bar.update(size)

        damaged = _find_damage(places, checked)
    if as_json:
        print_json({"n_checked": len(sizes), "damaged": [each._asdict() for each in damaged]})
    else:
        for each in damaged:
            click.echo(f"{each.kind} {each.tag}: {each.reason} (in {each.key})")
        summary = f"Checked {len(sizes)} objects, {human_size(sum(sizes))}: "
        click.echo(
            summary + (f"{len(damaged)} damaged. {_REMEDY}" if damaged else "all are as they were pushed."), err=True
        )
    if damaged:
        context.exit(1)


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--root", required=True, type=click.Path(file_okay=False), help="Directory of the registry.")
def backup(directory: Path, root: str) -> None:
    """Back up a registry into DIRECTORY.

    The registry may run meanwhile. A second backup into the same directory copies only new files, and removes files
    that the registry has deleted. A registry can also run on the backup. For PostgreSQL and S3, use their own tools.

    \b
    Examples:
      async-bento registry backup /backup/bentos --root /srv/bentos
    """
    with _bar("copying") as bar:
        result = _back_up(root, directory, bar.update)
    click.echo(f"Backed up {result.n_items} items into {directory}: {human_size(result.n_bytes)} copied.", err=True)
    if result.missing:
        raise BentoError(
            f"the bytes of {len(result.missing)} items are missing: {', '.join(result.missing[:3])}. "
            f"Run: async-bento registry check --root {root}"
        )


@asynchronous
async def _back_up(root: str, directory: Path, copied: Callable[[int], object]) -> Copied:
    from async_bento.registry.backup import back_up

    async with Places(root, None, None, None, None).attached() as opened:
        return await back_up(Path(root), directory, opened.records.database, copied)


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--root", required=True, type=click.Path(file_okay=False, path_type=Path), help="New directory of the registry."
)
@asynchronous
async def restore(directory: Path, root: Path) -> None:
    """Restore a backup in DIRECTORY into an empty directory.

    \b
    Examples:
      async-bento registry restore /backup/bentos --root /srv/bentos
    """
    from async_bento.registry.backup import restore as restore_backup

    cancel_on_signals()
    await restore_backup(directory, root)
    click.echo(f"Restored {directory} into {root}. Run: async-bento registry check --root {root}", err=True)
