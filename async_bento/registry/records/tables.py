"""The tables of the records; `migrations/versions` creates and changes them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

if TYPE_CHECKING:
    from sqlalchemy import Dialect


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC; SQLite stores it without the time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time for the database."""
        if value is None:
            return None
        in_utc = value.astimezone(timezone.utc)
        return in_utc.replace(tzinfo=None) if dialect.name == "sqlite" else in_utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time from the database."""
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


_Id = BigInteger().with_variant(Integer, "sqlite")  # only an INTEGER key of SQLite is the row's own number

_FIRST_CREATOR = "admin"
"""The name of the token that registered what is older than the names of tokens."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

repositories = Table(
    "repositories",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("folded_description", Text, nullable=False),
    Column("n_items", Integer, nullable=False),
    Column("creator", Text, nullable=False, server_default=_FIRST_CREATOR),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    UniqueConstraint("kind", "name"),
    sqlite_autoincrement=True,
)
"""`kind` is `bento` or `model`; `n_items` counts the items, and `folded_description` is in lower case, for searches."""

items = Table(
    "items",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", Text, nullable=False),
    Column("repository_id", _Id, ForeignKey("repositories.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("folded_description", Text, nullable=False),
    Column("manifest", Text),
    Column("size", BigInteger, nullable=False),
    Column("build_at", UtcTime, nullable=False),
    Column("upload_status", Text, nullable=False),
    Column("upload_started_at", UtcTime),
    Column("upload_finished_at", UtcTime),
    Column("upload_finished_reason", Text, nullable=False),
    Column("creator", Text, nullable=False, server_default=_FIRST_CREATOR),
    Column("last_pulled_at", UtcTime),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    UniqueConstraint("repository_id", "version"),
    Index(None, "repository_id", "id"),
    Index(None, "kind", "build_at", "id"),
    Index(None, "kind", "created_at", "id"),
    Index(None, "kind", "size", "id"),
    Index(None, "repository_id", "build_at", "id"),
    Index(None, "repository_id", "created_at", "id"),
    Index(None, "repository_id", "size", "id"),
    sqlite_autoincrement=True,
)
"""`manifest` is JSON, `size` in bytes; ids are in the order of registration, and never used again."""

labels = Table(
    "labels",
    metadata,
    Column("item_id", _Id, ForeignKey("items.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("position", SmallInteger, nullable=False),
    Index(None, "key", "value", "item_id"),
)

bento_models = Table(
    "bento_models",
    metadata,
    Column("bento_id", _Id, ForeignKey("items.id", ondelete="CASCADE"), primary_key=True),
    Column("position", SmallInteger, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Index(None, "name", "version", "bento_id"),
)
"""The models that a bento's manifest names, whether or not they exist."""

blobs = Table(
    "blobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("key", Text, nullable=False),
    Column("item_id", _Id, ForeignKey("items.id", ondelete="SET NULL")),
    Column("upload_id", Text),
    Column("state", Text, nullable=False),
    Column("size", BigInteger),
    Column("etag", Text),
    Column("parts", Text),
    Column("changed_at", UtcTime, nullable=False),
    UniqueConstraint("key"),
    Index(None, "item_id", "state"),
    Index(None, "state", "changed_at"),
    sqlite_autoincrement=True,
)
"""The bytes of each upload, see `records/blobs.py`; `parts` is JSON: the size in bytes and the MD5 of each."""

tokens = Table(
    "tokens",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("last_used_at", UtcTime),
    UniqueConstraint("digest"),
    Index(None, "name"),
    sqlite_autoincrement=True,
)
"""`digest` is the SHA-256 of the token; while a token is rotated, two rows have its name."""

events = Table(
    "events",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Index(None, "at"),
    Index(None, "name", "id"),
    sqlite_autoincrement=True,
)
"""The audit log: what the token `actor` did to the bento, model or token `name`; see `records/audit.py`."""

VERSION = "0002"
"""The newest migration, which leads to these tables."""

alembic_version = Table("alembic_version", MetaData(), Column("version_num", Text, primary_key=True))
"""Where Alembic keeps the version of a database's tables."""

settings = Table("settings", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))
"""Values that all copies of a registry share, such as the digest of its first token."""
