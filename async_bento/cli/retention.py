"""`async-bento registry prune` and `usage`: delete old versions, and show the disk usage."""

from __future__ import annotations

import re
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from async_bento._core.text import human_size
from async_bento.cli.confirm import confirm
from async_bento.cli.options import asynchronous, json_option
from async_bento.cli.output import print_json, print_table
from async_bento.cli.registry import shell_actor, storage_options
from async_bento.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_bento.cli.registry import Places
    from async_bento.registry.records.blobs import Blob
    from async_bento.registry.records.retention import Version
    from async_bento.registry.retention import Pruner

_HOURS = {"h": 1, "d": 24, "w": 7 * 24}

_SHOWN = 10
"""Versions that the question names."""


def parse_age(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Parse an age like `12h`, `30d` or `2w` into seconds."""
    if value is None:
        return None
    from async_bento.registry.retention import MAX_AGE

    found = re.fullmatch(r"([0-9]{1,6})([hdw])", value)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{value!r} is no age. Use hours, days or weeks, like 12h, 30d or 2w.")
    seconds = float(found[1]) * _HOURS[found[2]] * 3600
    if seconds > MAX_AGE:
        raise click.BadParameter(f"{value!r} is too long. Use at most 100 years.")
    return seconds


@click.command()
@storage_options
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the newest N complete versions of each repository, and all that were registered after them.",
)
@click.option(
    "--older-than",
    callback=parse_age,
    metavar="AGE",
    help="Keep versions that were registered or pushed within AGE, like 12h, 30d or 2w.",
)
@click.option(
    "--repository", "pattern", metavar="PATTERN", default="*", help="Only repositories whose names match, like 'iris*'."
)
@click.option("--only", type=click.Choice(["bentos", "models"]), help="Only bentos, or only models.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@json_option
@asynchronous
async def prune(
    places: Places,
    keep: int | None,
    older_than: float | None,
    pattern: str,
    only: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete old versions from a registry.

    At least one of --keep and --older-than is required. With both, a version is deleted only if both allow it. A model
    that a remaining bento names is kept. An upload that is not complete is kept for 24 hours.

    The registry may run meanwhile. If it keeps the bytes in a directory, it removes them itself, within two hours, so
    that running pulls finish.

    \b
    Examples:
      async-bento registry prune --root /srv/bentos --keep 10 --dry-run
      async-bento registry prune --root /srv/bentos --keep 3 --older-than 30d --repository "iris*"
      async-bento registry prune --database postgresql://bento@db.example/bentos --s3 my-bucket --older-than 26w --yes
    """
    from async_bento.registry.item_types import ITEM_TYPES
    from async_bento.registry.retention import Pruner, RetentionPolicy, remove_bytes

    if keep is None and older_than is None:
        raise click.UsageError("Pass --keep, --older-than or both.")
    item_types = [each for each in ITEM_TYPES if only in (None, each.items)]
    policy = RetentionPolicy(keep, older_than, pattern, item_types)
    async with places.attached() as opened:
        pruner = Pruner(opened.retention, policy, by=shell_actor())
        planned = await pruner.plan()
        if not pruner.n_repositories and pattern != "*":
            raise NotFoundError(f"no repository in {places} matches {pattern!r}.")
        if dry_run or not planned:
            _report(planned, [], dry_run=dry_run, as_json=as_json)
            return
        if not yes:
            _ask(planned, places)
        deleted, released = await _delete(pruner, planned, as_json=as_json)
        # None for a bucket, whose bytes any process may remove.
        root = Path(places.root) if places.root is not None and places.bucket_name is None else None
        left = await remove_bytes(opened.uploads, released, root)
        _report(deleted, left, dry_run=False, as_json=as_json)


def _ask(planned: Sequence[Version], places: Places) -> None:
    for version in planned[:_SHOWN]:
        click.echo(_describe(version), err=True)
    if len(planned) > _SHOWN:
        click.echo(f"and {len(planned) - _SHOWN} more; --dry-run lists all.", err=True)
    confirm(f"Delete {_count(planned)} from {places}?")


async def _delete(
    pruner: Pruner, planned: Sequence[Version], *, as_json: bool
) -> tuple[Sequence[Version], Sequence[Blob]]:
    deleted: list[Version] = []
    released: list[Blob] = []
    async with aclosing(pruner.delete(planned)) as batches:
        async for versions, blobs in batches:
            deleted += versions
            released += blobs
            if not as_json:
                for version in versions:
                    click.echo(f"Deleted {_describe(version)}.")
    return deleted, released


def _report(versions: Sequence[Version], left: Sequence[Blob], *, dry_run: bool, as_json: bool) -> None:
    """Print what was or would be deleted, and which of the bytes are `left` to the registry."""
    waiting = sum(blob.content.size for blob in left if blob.content is not None)
    if as_json:
        listed = [{"kind": each.kind, "tag": each.tag, "size_bytes": each.size} for each in versions]
        total = sum(each.size for each in versions)
        print_json({"dry_run": dry_run, "deleted": listed, "size_bytes": total, "waiting_bytes": waiting})
        return
    if dry_run:
        for version in versions:
            click.echo(f"Would delete {_describe(version)}.")
    if not versions:
        click.echo("Nothing to delete.", err=True)
        return
    summary = f"{'Would delete' if dry_run else 'Deleted'} {_count(versions)}."
    more = " The registry removes their bytes within two hours." if left else ""
    click.echo(summary + more, err=True)


def _describe(version: Version) -> str:
    return f"{version.kind} {version.tag}: {human_size(version.size)}"


def _count(versions: Sequence[Version]) -> str:
    counts = [(word, sum(each.kind == word for each in versions)) for word in ("bento", "model")]
    words = " and ".join(f"{count} {word}{'s' if count > 1 else ''}" for word, count in counts if count)
    return f"{words}, {human_size(sum(each.size for each in versions))}"


@click.command()
@storage_options
@json_option
@asynchronous
async def usage(places: Places, as_json: bool) -> None:
    """Show how much space each repository of a registry uses.

    The largest comes first. The registry may run meanwhile.

    \b
    Examples:
      async-bento registry usage --root /srv/bentos
      async-bento registry usage --database postgresql://bento@db.example/bentos --s3 my-bucket --json
    """
    async with places.attached() as opened:
        used = await opened.retention.usage()
        total = await opened.blob_records.usage()
    if as_json:
        print_json(
            {
                "repositories": [
                    {"kind": each.kind, "name": each.name, "n_versions": each.n_versions, "size_bytes": each.size}
                    for each in used
                ],
                "size_bytes": sum(each.size for each in used),
                "waiting_bytes": total.unused,
            }
        )
        return
    if used:
        rows = [(each.name, each.kind, str(each.n_versions), human_size(each.size)) for each in used]
        print_table(("REPOSITORY", "KIND", "VERSIONS", "SIZE"), rows)
    n_versions = sum(each.n_versions for each in used)
    summary = f"{n_versions} version{'' if n_versions == 1 else 's'}, {human_size(sum(each.size for each in used))}."
    waiting = f" {human_size(total.unused)} of replaced and deleted versions wait for removal." if total.unused else ""
    click.echo(summary + waiting, err=True)
