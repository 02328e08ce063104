"""A bento or a model in the registry whose files are read without a pull."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from async_bento._core.retry import is_missing
from async_bento._core.tag import Tag
from async_bento.api.records import get_record, hub_metadata
from async_bento.errors import (
    APIStatusError,
    ArchiveError,
    ConfigError,
    NotFoundError,
    PartError,
    TransferError,
    prefix_errors,
)
from async_bento.transfer.download_source import DownloadSource
from async_bento.transfer.remote import RemoteTar
from async_bento.transfer.verify import ObjectChangedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento.api.kinds import Kind
    from async_bento.api.resources import Resources
    from async_bento.rest.schemas import ItemSchema

T = TypeVar("T")


class RemoteItem:
    """The tar of an item; `tag` has the version, and `record` is set, once the first `run` has found them."""

    def __init__(self, resources: Resources, kind: Kind[Any, Any], tag: Tag) -> None:
        self.tag = tag
        self.record: ItemSchema | None = None
        self.resources = resources
        self.kind = kind
        self._tar: RemoteTar | None = None
        self._upload: object = None  # of the tar; another push has another one

    async def run(self, action: str, operation: Callable[[RemoteTar], Awaitable[T]]) -> T:
        """Run an operation on the tar; once more if the tar is replaced meanwhile. `action` is for messages."""
        async with self.resources.call():
            is_again = False
            while True:
                tar = await self._open_tar(action)
                try:
                    with prefix_errors(f"cannot {action} {self.tag}", ArchiveError, NotFoundError):
                        return await operation(tar)
                except ObjectChangedError as error:
                    self._tar = None
                    if is_again:
                        raise TransferError(f"cannot {action} {self.tag}: {error}, twice. Try again.") from None
                    is_again = True
                except (APIStatusError, PartError) as error:
                    if not is_missing(error):
                        raise
                    raise NotFoundError(
                        f"cannot {action} {self.tag}: the registry has a record of the {self.kind.word}, but not its "
                        "files. Push it again."
                    ) from error

    async def _open_tar(self, action: str) -> RemoteTar:
        """The tar that the registry has now."""
        pool = self.resources.pool
        record = await get_record(self.kind.routes, self.tag)
        self.tag, self.record = Tag(self.tag.name, record.version), record
        refuse_hub_model(action, self.tag, record)
        upload = record.upload_started_at, record.upload_finished_at, record.checksums
        # Another pool: the tar was opened on another event loop, or before a fork.
        if self._tar is None or self._tar.pool is not pool or self._upload != upload:
            source = DownloadSource(
                self.kind.routes, self.tag.name, record, action="read", verify=pool.config.transfer.verify
            )
            self._tar = RemoteTar(source, pool, self.resources.indexes, self.kind.endpoint)
            self._upload = upload
        return self._tar


def refuse_hub_model(action: str, tag: Tag, record: ItemSchema) -> None:
    """Raise ConfigError for a model whose files are not in the registry."""
    if hub_metadata(record) is not None:
        raise ConfigError(f"cannot {action} {tag}: its files are on the Hugging Face Hub. Pull the model.")
