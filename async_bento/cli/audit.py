"""`async-bento registry audit`: who pushed, replaced, deleted and pulled what, and when."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from async_bento.cli.options import asynchronous, json_option
from async_bento.cli.output import print_json, print_table
from async_bento.cli.registry import storage_options
from async_bento.cli.retention import parse_age

if TYPE_CHECKING:
    from async_bento.cli.registry import Places
    from async_bento.registry.records.audit import Action

# As `records.audit.Action`, whose import loads SQLAlchemy.
_ACTIONS = ("push", "replace", "delete", "pull", "create", "rotate", "revoke")


@click.command()
@storage_options
@click.option("--since", callback=parse_age, metavar="AGE", help="Only events within AGE, like 7d.")
@click.option("--name", help="Only events about this bento, model or token, without a version.")
@click.option("--action", type=click.Choice(_ACTIONS), help="Only events of this kind.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Maximum number of events, the newest; 0 for all.",
)
@json_option
@asynchronous
async def audit(
    places: Places, since: float | None, name: str | None, action: Action | None, limit: int, as_json: bool
) -> None:
    """Print who pushed, replaced, deleted and pulled what, and when.

    The newest event is the last. Events are kept for a year. The registry may run meanwhile.

    \b
    Examples:
      async-bento registry audit --root /srv/bentos --since 7d
      async-bento registry audit --root /srv/bentos --name iris_classifier --action delete --json
    """
    from async_bento.registry.records.audit import AuditLog
    from async_bento.registry.records.base import utc_now

    oldest = None if since is None else utc_now() - timedelta(seconds=since)
    async with places.database_only() as database:
        found = await AuditLog(database).list(count=limit, since=oldest, name=name, action=action)
    if as_json:
        print_json([event._asdict() | {"at": event.at.isoformat()} for event in found])
        return
    rows = [
        (f"{event.at:%Y-%m-%d %H:%M:%S}", event.actor, event.action, event.kind, event.subject, event.address or "-")
        for event in found
    ]
    print_table(("TIME (UTC)", "TOKEN", "ACTION", "KIND", "NAME", "ADDRESS"), rows)
