"""The first tables, and the records of a registry before them, which had its own tables in SQLite."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_OLD_VERSION = 1
_OLD_TABLES = ("repositories", "items", "labels")
_MAX_MODELS = 1000
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def upgrade() -> None:
    """Create the tables; copy the records of the tables before them."""
    connection = op.get_bind()
    is_sqlite = connection.dialect.name == "sqlite"
    has_old_tables = is_sqlite and connection.exec_driver_sql("PRAGMA user_version").scalar() == _OLD_VERSION
    if has_old_tables:
        for name in _OLD_TABLES:
            op.rename_table(name, f"old_{name}")
    repositories, items, labels, bento_models = _create_tables()
    if has_old_tables:
        _copy(connection, repositories, items, labels, bento_models)
        for name in reversed(_OLD_TABLES):
            op.drop_table(f"old_{name}")
        connection.exec_driver_sql("PRAGMA user_version = 0")


def _create_tables() -> tuple[sa.Table, sa.Table, sa.Table, sa.Table]:
    repositories = op.create_table(
        "repositories",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("folded_description", sa.Text, nullable=False),
        sa.Column("n_items", sa.Integer, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.UniqueConstraint("kind", "name", name="uq_repositories_kind_name"),
        sqlite_autoincrement=True,
    )
    items = op.create_table(
        "items",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column(
            "repository_id",
            _ID,
            sa.ForeignKey("repositories.id", name="fk_items_repository_id"),
            nullable=False,
        ),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("folded_description", sa.Text, nullable=False),
        sa.Column("manifest", sa.Text),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("build_at", _TIME, nullable=False),
        sa.Column("upload_status", sa.Text, nullable=False),
        sa.Column("upload_started_at", _TIME),
        sa.Column("upload_finished_at", _TIME),
        sa.Column("upload_finished_reason", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.UniqueConstraint("repository_id", "version", name="uq_items_repository_id_version"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_items_repository_id_id", "items", ["repository_id", "id"])
    for scope in ("kind", "repository_id"):
        for sort in ("build_at", "created_at", "size"):
            op.create_index(f"ix_items_{scope}_{sort}_id", "items", [scope, sort, "id"])
    labels = op.create_table(
        "labels",
        sa.Column("item_id", _ID, _item("labels", "item_id"), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("position", sa.SmallInteger, nullable=False),
    )
    op.create_index("ix_labels_key_value_item_id", "labels", ["key", "value", "item_id"])
    bento_models = op.create_table(
        "bento_models",
        sa.Column("bento_id", _ID, _item("bento_models", "bento_id"), primary_key=True),
        sa.Column("position", sa.SmallInteger, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
    )
    op.create_index("ix_bento_models_name_version_bento_id", "bento_models", ["name", "version", "bento_id"])
    op.create_table(
        "blobs",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("item_id", _ID, sa.ForeignKey("items.id", name="fk_blobs_item_id", ondelete="SET NULL")),
        sa.Column("upload_id", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("etag", sa.Text),
        sa.Column("parts", sa.Text),
        sa.Column("changed_at", _TIME, nullable=False),
        sa.UniqueConstraint("key", name="uq_blobs_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_blobs_item_id_state", "blobs", ["item_id", "state"])
    op.create_index("ix_blobs_state_changed_at", "blobs", ["state", "changed_at"])
    op.create_table(
        "settings", sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
    )
    return repositories, items, labels, bento_models


def _item(table: str, column: str) -> sa.ForeignKey:
    return sa.ForeignKey("items.id", name=f"fk_{table}_{column}", ondelete="CASCADE")


def _copy(
    connection: sa.Connection, repositories: sa.Table, items: sa.Table, labels: sa.Table, bento_models: sa.Table
) -> None:
    def rows(sql: str) -> list[dict[str, Any]]:
        return [dict(row) for row in connection.exec_driver_sql(sql).mappings()]

    counts = {
        row["repository_id"]: row["n"] for row in rows("SELECT repository_id, count(*) AS n FROM old_items GROUP BY 1")
    }
    kinds: dict[int, str] = {}
    for row in rows("SELECT * FROM old_repositories"):
        kinds[row["id"]] = row["kind"]
        times: dict[str, Any] = {name: _time(row[name]) for name in ("created_at", "updated_at")}
        folded = {"folded_description": row["description"].lower(), "n_items": counts.get(row["id"], 0)}
        connection.execute(repositories.insert(), row | times | folded)
    for (item_id,) in connection.exec_driver_sql("SELECT id FROM old_items ORDER BY id").all():
        (row,) = rows(f"SELECT * FROM old_items WHERE id = {item_id:d}")  # noqa: S608 - a number
        times = {
            name: _time(row[name]) if row[name] else None
            for name in ("build_at", "upload_started_at", "upload_finished_at", "created_at", "updated_at")
        }
        kind = kinds[row["repository_id"]]
        folded = {"folded_description": row["description"].lower(), "kind": kind}
        connection.execute(items.insert(), row | times | folded)
        for position, (name, version) in enumerate(_models(row["manifest"]) if kind == "bento" else ()):
            values = {"bento_id": item_id, "position": position, "name": name, "version": version}
            connection.execute(bento_models.insert(), values)
    positions: dict[int, int] = {}
    for row in rows("SELECT item_id, key, value FROM old_labels ORDER BY id"):
        position = positions[row["item_id"]] = positions.get(row["item_id"], -1) + 1
        connection.execute(labels.insert(), row | {"position": position})


def _time(text: str) -> datetime:
    try:
        found = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f").replace(tzinfo=timezone.utc)
    except ValueError:  # a year before 1000, which was accepted and then broke every list
        return _EPOCH
    return max(found, _EPOCH)


def _models(manifest: str | None) -> list[tuple[str, str]]:
    stored: dict[str, Any] = json.loads(manifest) if manifest else {}
    tags: list[object] = stored["models"] if isinstance(stored.get("models"), list) else []
    parts = [str(tag).partition(":") for tag in tags]
    return [(name, version) for name, _, version in parts][:_MAX_MODELS]
