"""The records of tokens. The database has their digests only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from async_bento.errors import ConfigError, NotFoundError
from async_bento.registry.records.audit import add_event
from async_bento.registry.records.base import utc_now
from async_bento.registry.records.tables import settings, tokens
from async_bento.registry.tokens import FIRST_TOKEN, Token, digest_of, generate_token

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement, RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from async_bento.registry.records.database import Database
    from async_bento.registry.tokens import Actor, Role

_FIRST = "first_token"
"""The setting with the digest of the token that the registry was started with."""

_COLUMNS = [column for column in tokens.c if column.name != "digest"]


class TokenRecords:
    """The records of the tokens of a registry, which all its copies read for each request."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, secret: str) -> Token | None:
        """Return the record of a token that clients may use now; None if it is unknown, revoked or expired."""
        wanted = select(*_COLUMNS).where(tokens.c.digest == digest_of(secret))
        async with self._database.reading() as connection:
            row = (await connection.execute(wanted)).mappings().first()
        token = None if row is None else _token(row)
        return None if token is None or token.is_expired(utc_now()) else token

    async def find_by_id(self, token_id: int) -> tuple[Token, str] | None:
        """Return the record of a token that clients may use now, with its digest; see `find`."""
        wanted = select(tokens).where(tokens.c.id == token_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(wanted)).mappings().first()
        if row is None:
            return None
        token = _token({name: value for name, value in row.items() if name != "digest"})
        return None if token.is_expired(utc_now()) else (token, row["digest"])

    async def list(self) -> list[Token]:
        """Return all tokens, expired ones included, in the order of names."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(*_COLUMNS).order_by(tokens.c.name, tokens.c.id))
            return [_token(row) for row in rows.mappings()]

    async def create(
        self, name: str, role: Role, *, prefix: str = "", expires_at: datetime | None = None, by: Actor
    ) -> str:
        """Create a token and return it; raise `ConfigError` if the name is taken."""
        secret = generate_token()
        async with self._database.writing() as connection:
            if await _find_valid(connection, name) is not None:
                raise ConfigError(
                    f"cannot create the token {name}: it exists. Choose another name, rotate it, or revoke it first."
                )
            await connection.execute(delete(tokens).where(tokens.c.name == name))  # expired ones
            await _insert(connection, secret, name, role, prefix, expires_at)
            await add_event(connection, "create", "token", name, by=by)
        return secret

    async def rotate(self, name: str, *, old_until: datetime, expires_at: datetime | None, by: Actor) -> str:
        """Create another token with the name, role and prefix of one, which expires at `old_until`; return it.

        Raise `NotFoundError` if there is no such token.
        """
        secret = generate_token()
        async with self._database.writing() as connection:
            old = await _find_valid(connection, name)
            if old is None:
                raise _not_found(name)
            ends_later = or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > old_until)
            ended = update(tokens).where(tokens.c.name == name, ends_later).values(expires_at=old_until)
            await connection.execute(ended)
            await _insert(connection, secret, name, old.role, old.prefix, expires_at)
            await add_event(connection, "rotate", "token", name, by=by)
        return secret

    async def revoke(self, name: str, *, by: Actor) -> None:
        """Remove a token, in effect at once; raise `NotFoundError` if there is none of that name."""
        async with self._database.writing() as connection:
            removed = await connection.execute(delete(tokens).where(tokens.c.name == name).returning(tokens.c.id))
            if not removed.all():
                raise _not_found(name)
            await add_event(connection, "revoke", "token", name, by=by)

    async def adopt(self, secret: str, *, by: Actor) -> None:
        """Keep the only token of an older registry as one of the admin, unless the database has tokens."""
        async with self._database.writing() as connection:
            if (await connection.execute(select(tokens.c.id).limit(1))).first() is None:
                await _insert(connection, secret, FIRST_TOKEN, "admin", "", None)
                await add_event(connection, "create", "token", FIRST_TOKEN, by=by)

    async def set_first(self, secret: str, *, by: Actor) -> bool:
        """Make a token one of the admin, instead of the one that was set so before; return whether it is valid.

        A token that was set so before and revoked since stays revoked. Raise `ConfigError` if it has another role.
        """
        try:
            is_new = await self._set_first(secret, by)
        except IntegrityError:  # another copy has started at the same time
            is_new = await self._set_first(secret, by)
        return is_new or await self.find(secret) is not None

    async def _set_first(self, secret: str, by: Actor) -> bool:
        """Set the token unless it is set; return whether it was inserted. A start pays for each statement."""
        digest, is_setting = digest_of(secret), settings.c.name == _FIRST
        async with self._database.writing() as connection:
            before = (await connection.execute(select(settings.c.value).where(is_setting))).scalar_one_or_none()
            if before == digest:
                return False
            same = select(tokens.c.name, tokens.c.role).where(tokens.c.digest == digest)
            known = (await connection.execute(same)).first()
            if known is not None and known[1] != "admin":
                raise ConfigError(f"invalid token: it is the token {known[0]} of the role {known[1]}. Use another one.")
            if before is not None:
                await connection.execute(delete(tokens).where(tokens.c.digest == before))
                await connection.execute(delete(settings).where(is_setting))
            await connection.execute(insert(settings), {"name": _FIRST, "value": digest})
            if known is None:
                await _insert(connection, secret, FIRST_TOKEN, "admin", "", None)
                await add_event(connection, "create", "token", FIRST_TOKEN, by=by)
            return known is None

    async def has_any(self) -> bool:
        """Return whether there is a token."""
        async with self._database.reading() as connection:
            return (await connection.execute(select(tokens.c.id).limit(1))).first() is not None

    async def set_used(self, token: Token, at: datetime) -> None:
        """Record when a token was last used."""
        async with self._database.writing() as connection:
            await connection.execute(update(tokens).where(tokens.c.id == token.id).values(last_used_at=at))


def _is_valid(now: datetime) -> ColumnElement[bool]:
    return or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now)


async def _find_valid(connection: AsyncConnection, name: str) -> Token | None:
    named = select(*_COLUMNS).where(and_(tokens.c.name == name, _is_valid(utc_now()))).order_by(tokens.c.id.desc())
    row = (await connection.execute(named.limit(1))).mappings().first()
    return None if row is None else _token(row)


async def _insert(
    connection: AsyncConnection, secret: str, name: str, role: Role, prefix: str, expires_at: datetime | None
) -> None:
    values = {"name": name, "digest": digest_of(secret), "role": role, "prefix": prefix}
    await connection.execute(insert(tokens), values | {"created_at": utc_now(), "expires_at": expires_at})


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"there is no token {name}. List the tokens with: async-bento registry token list")


def _token(row: Mapping[str, Any] | RowMapping) -> Token:
    return Token(**row)
