"""Tokens, the audit log, who created a record, and when an item was last pulled."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)
_TOKEN = "api_token"  # noqa: S105 - the name of a setting


def upgrade() -> None:
    """Create the tables; the only token of an older registry becomes the one of the admin, as a digest."""
    for table in ("repositories", "items"):
        op.add_column(table, sa.Column("creator", sa.Text, nullable=False, server_default="admin"))
    op.add_column("items", sa.Column("last_pulled_at", _TIME))
    tokens = _create_tokens()
    _create_events()
    connection = op.get_bind()
    settings = sa.table("settings", sa.column("name", sa.Text), sa.column("value", sa.Text))
    is_token = settings.c.name == _TOKEN
    token = connection.execute(sa.select(settings.c.value).where(is_token)).scalar_one_or_none()
    if token is not None:
        digest = hashlib.sha256(token.encode()).hexdigest()
        values = {"name": "admin", "digest": digest, "role": "admin", "prefix": ""}
        connection.execute(tokens.insert(), values | {"created_at": datetime.now(timezone.utc)})
        connection.execute(sa.delete(settings).where(is_token))


def _create_tokens() -> sa.Table:
    tokens = op.create_table(
        "tokens",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("last_used_at", _TIME),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tokens_name", "tokens", ["name"])
    return tokens


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("at", _TIME, nullable=False),
        *(
            sa.Column(name, sa.Text, nullable=False)
            for name in ("actor", "address", "action", "kind", "name", "version")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_at", "events", ["at"])
    op.create_index("ix_events_name_id", "events", ["name", "id"])
