"""`async-bento registry token`: create, list, rotate and revoke the tokens of a registry."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from async_bento.cli.groups import LazyGroup
from async_bento.cli.options import asynchronous, json_option
from async_bento.cli.output import print_json, print_table, terminal_width
from async_bento.cli.registry import shell_actor, storage_options
from async_bento.cli.retention import parse_age

if TYPE_CHECKING:
    from datetime import datetime

    from async_bento.cli.registry import Places
    from async_bento.registry.tokens import Role, Token

# Names appear in logs, tables and user records of the API.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_COMMANDS = {
    "create": "token:create",
    "list": "token:list_tokens",
    "revoke": "token:revoke",
    "rotate": "token:rotate",
}


def _check_name(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise click.BadParameter(
            f"{name!r} is no name of a token. Use up to 63 letters, digits, dots, hyphens and underscores."
        )
    return name


_name_argument = click.argument("name", callback=_check_name)
_expires_option = click.option(
    "--expires", callback=parse_age, metavar="AGE", help="When the new token expires, like 90d; by default never."
)


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def token() -> None:
    """Create and revoke the tokens that clients need."""


@click.command()
@_name_argument
@storage_options
@click.option(
    "--role",
    type=click.Choice(["read", "push", "admin"]),
    required=True,
    help="read: list, get and pull. push: also push and label. admin: also delete.",
)
@click.option("--prefix", default="", help="Allow only repositories whose names begin with this.")
@_expires_option
@asynchronous
async def create(places: Places, name: str, role: Role, prefix: str, expires: float | None) -> None:
    """Create a token, and print it.

    The database keeps a hash of the token, so this is the only time it is shown. The registry may run meanwhile.

    \b
    Examples:
      async-bento registry token create ci --role push --root /srv/bentos
      async-bento registry token create team-a --role push --prefix team-a- --expires 90d --root /srv/bentos
    """
    from async_bento.registry.records.tokens import TokenRecords

    async with places.database_only() as database:
        records = TokenRecords(database)
        secret = await records.create(name, role, prefix=prefix, expires_at=_after(expires), by=shell_actor())
    _print_secret(f"Created the token {name} with the role {role}.", secret)


@click.command()
@_name_argument
@storage_options
@click.option(
    "--overlap",
    callback=parse_age,
    default="24h",
    show_default=True,
    metavar="AGE",
    help="How long the old token stays valid.",
)
@_expires_option
@asynchronous
async def rotate(places: Places, name: str, overlap: float, expires: float | None) -> None:
    """Replace a token, and print the new one.

    The new token has the name, the role and the prefix of the old one. The old token stays valid for the time of
    --overlap, so that clients can change to the new token.

    \b
    Examples:
      async-bento registry token rotate ci --root /srv/bentos --overlap 1h
    """
    from async_bento.registry.records.base import utc_now
    from async_bento.registry.records.tokens import TokenRecords

    old_until = utc_now() + timedelta(seconds=overlap)
    async with places.database_only() as database:
        records = TokenRecords(database)
        secret = await records.rotate(name, old_until=old_until, expires_at=_after(expires), by=shell_actor())
    _print_secret(f"Rotated the token {name}. The old one expires at {_format(old_until)}.", secret)


@click.command()
@_name_argument
@storage_options
@asynchronous
async def revoke(places: Places, name: str) -> None:
    """Revoke a token, in effect at once.

    \b
    Examples:
      async-bento registry token revoke ci --root /srv/bentos
    """
    from async_bento.registry.records.tokens import TokenRecords

    async with places.database_only() as database:
        await TokenRecords(database).revoke(name, by=shell_actor())
    click.echo(f"Revoked the token {name}.", err=True)


@click.command("list")
@storage_options
@json_option
@asynchronous
async def list_tokens(places: Places, as_json: bool) -> None:
    """List the tokens, with the time of their last use.

    \b
    Examples:
      async-bento registry token list --root /srv/bentos
    """
    from async_bento.registry.records.tokens import TokenRecords

    async with places.database_only() as database:
        found = await TokenRecords(database).list()
    if as_json:
        print_json([_as_json(each) for each in found])
        return
    head = ("NAME", "ROLE", "PREFIX", "CREATED", "EXPIRES", "LAST USED")
    print_table(head, [_row(each) for each in found])


def _print_secret(summary: str, secret: str) -> None:
    """Print a token as the last word, and alone in a pipe."""
    if terminal_width() is not None:
        click.echo(f"{summary} The token is shown only now:")
    click.echo(secret)


def _after(seconds: float | None) -> datetime | None:
    from async_bento.registry.records.base import utc_now

    return None if seconds is None else utc_now() + timedelta(seconds=seconds)


def _row(token: Token) -> tuple[str, ...]:
    times = (token.created_at, token.expires_at, token.last_used_at)
    return (token.name, token.role, token.prefix or "-", *(_format(time) for time in times))


def _as_json(token: Token) -> dict[str, object]:
    fields: dict[str, object] = {"name": token.name, "role": token.role, "prefix": token.prefix}
    for name in ("created_at", "expires_at", "last_used_at"):
        time: datetime | None = getattr(token, name)
        fields[name] = None if time is None else time.isoformat()
    return fields


def _format(time: datetime | None) -> str:
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M} UTC"
