"""The database of the records: connections, transactions, migrations, and the translation of its errors."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, exc, insert, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from async_bento._core.concurrency import Threads
from async_bento.errors import ConfigError
from async_bento.registry.errors import StorageError, disk_error
from async_bento.registry.records.tables import VERSION, alembic_version, metadata

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_CONNECTIONS = {"sqlite": 5, "postgresql": 10}
"""Per copy of the registry. Readers of SQLite do not wait for its writer."""

_BUSY_TIMEOUT = 5.0
"""Seconds that a request waits for a connection, or for the lock of another process."""

_RETRY_AFTER = 2
"""Seconds after which clients should retry."""

_MIGRATION_LOCK = 0x62656E746F
"""PostgreSQL's number of the lock that one copy of the registry holds while it migrates."""

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


class Database:
    """A database with the registry's tables: a file of SQLite, or a database of PostgreSQL."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine: AsyncEngine | None = None
        self._writers = asyncio.Lock()

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a file of SQLite, which one process at a time writes."""
        return self._url.get_backend_name() == "sqlite"

    async def open(self) -> None:
        """Connect, and create or migrate the tables; raise `ConfigError` if that is impossible."""
        threads = Threads(1)
        try:
            self._engine = await threads.run(_create_engine, self._url)
            async with _migrating(self._engine) as connection:
                is_current = await connection.run_sync(_is_current)
            if not is_current:
                await threads.run(_migrate, self._url)
        except (exc.SQLAlchemyError, OSError, asyncio.TimeoutError) as error:
            raise ConfigError(f"cannot open the database {self}: {_reason(error)}.{_advice(error)}") from error
        finally:
            threads.close()

    async def close(self) -> None:
        """Close all connections."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()

    async def snapshot(self, path: Path) -> None:
        """Copy a file of SQLite, as of one moment, into a new file; writers need not wait."""
        async with self.reading() as connection:
            # SQLite refuses VACUUM in a transaction, and `reading` starts none.
            await connection.exec_driver_sql("VACUUM INTO ?", (str(path),))

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[AsyncConnection]:
        """Connect for reading; each statement sees what was committed before it."""
        with _translated():
            async with self._opened.connect() as connection:
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[AsyncConnection]:
        """Connect for one transaction, which the end of the block commits and an error rolls back."""
        with _translated():
            if not self.is_sqlite:
                async with self._opened.begin() as connection:
                    yield connection
                return
            # The writers of this process wait in line, and only for other processes by SQLite's polling.
            async with self._writers, self._opened.connect() as connection:
                await connection.execution_options(immediate=True)
                async with connection.begin():
                    yield connection

    @property
    def _opened(self) -> AsyncEngine:
        assert self._engine is not None, "the database is closed"
        return self._engine


def sqlite_url(path: Path) -> URL:
    """Return the URL of a file of SQLite."""
    return URL.create(_DRIVERS["sqlite"], database=str(path))


def parse_database_url(url: str) -> URL:
    """Parse the URL of a database, with the driver that this package uses; raise `ConfigError` if it is invalid."""
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.get_backend_name()]
    except (exc.ArgumentError, KeyError) as error:
        raise ConfigError(
            "invalid database: it is no URL of SQLite or PostgreSQL. Use one like "
            "postgresql://user:password@host/database."
        ) from error
    if parsed.drivername not in {driver, parsed.get_backend_name()}:
        raise ConfigError(f"invalid database: the driver {parsed.drivername} is not supported. Use {driver}.")
    return parsed.set(drivername=driver)


def _create_engine(url: URL) -> AsyncEngine:
    """Create an engine. Blocks, since it imports the driver."""
    options: dict[str, Any] = {
        "pool_size": _CONNECTIONS[url.get_backend_name()],
        "max_overflow": 0,
        "pool_timeout": _BUSY_TIMEOUT,
        "hide_parameters": True,  # in errors; they may hold the token
    }
    try:
        if url.get_backend_name() != "sqlite":
            import_module("asyncpg")
            return create_async_engine(
                url, pool_pre_ping=True, connect_args={"timeout": _BUSY_TIMEOUT, "command_timeout": 60.0}, **options
            )
        import_module("aiosqlite")
    except ModuleNotFoundError as error:
        raise ConfigError(f'cannot use PostgreSQL: {error}. Run: pip install "async-bento[postgres]"') from error
    # Transactions begin by `_begin`, not by Python's sqlite3, which would begin them late.
    arguments = {"timeout": _BUSY_TIMEOUT, "isolation_level": None}
    engine = create_async_engine(url, connect_args=arguments, **options)
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # FULL: in WAL mode, NORMAL may lose the last commits when the power fails. `fullfsync` is for macOS.
    # SQLite enforces foreign keys only on request.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "fullfsync = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get("immediate"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@asynccontextmanager
async def _migrating(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """Connect for one transaction that no other copy of the registry runs at the same time."""
    async with engine.connect() as connection:
        await connection.execution_options(immediate=True)
        async with connection.begin():
            if engine.dialect.name != "sqlite":
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            yield connection


def _is_current(connection: Connection) -> bool:
    """Create the tables of an empty database; return whether they are of the newest version now."""
    names = inspect(connection).get_table_names()
    if alembic_version.name in names:
        return connection.execute(select(alembic_version.c.version_num)).scalar_one_or_none() == VERSION
    if names:
        return False  # of a release before the first migration
    metadata.create_all(connection, checkfirst=False)
    alembic_version.create(connection)
    connection.execute(insert(alembic_version), {"version_num": VERSION})
    return True


def _migrate(url: URL) -> None:
    """Run the migrations that a database lacks. Blocks."""
    from alembic.util import CommandError  # few starts need Alembic, and its import takes a while

    try:
        asyncio.run(_migrate_on(_create_engine(url)))
    except CommandError as error:
        raise ConfigError(
            f"cannot open the database {url.render_as_string(hide_password=True)}: a newer async-bento wrote it. "
            "Upgrade async-bento."
        ) from error


async def _migrate_on(engine: AsyncEngine) -> None:
    try:
        async with _migrating(engine) as connection:
            await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, revision: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "async_bento.registry.records:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


@contextmanager
def _translated() -> Generator[None]:
    """Translate the errors of an unavailable database into `StorageError`, but not those of a statement."""
    try:
        yield
    except (exc.IntegrityError, exc.ProgrammingError, exc.DataError, exc.NotSupportedError):
        raise
    except (exc.DBAPIError, exc.TimeoutError, OSError, asyncio.TimeoutError) as error:
        reason = str(getattr(error, "orig", None) or error)
        # SQLite's message: sqlite3 has no error codes before Python 3.11.
        if "disk is full" in reason:
            raise disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        what = "is locked by another process" if "locked" in reason else "cannot be reached"
        message = f"the registry's database {what}"
        raise StorageError("ServiceUnavailable", message, status=503, retry_after=_RETRY_AFTER) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).rstrip(".") or type(error).__name__


def _advice(error: Exception) -> str:
    return " Restore it from a backup." if isinstance(error, exc.DatabaseError) else " Check its URL."
