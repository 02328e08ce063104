"""A push, step by step: the repository, the record, the bytes.

The order is that of BentoML 1.4.39 (`bentoml/_internal/cloud/bento.py`), with two exceptions. The directory is scanned
before anything is registered, so a file that cannot be read leaves no record behind. An existing record is updated
after its bytes, so an interrupted push of a complete item leaves that item complete.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple

from async_bento._core.concurrency import hold_lock
from async_bento._core.retry import Retries
from async_bento._core.text import human_size, table
from async_bento.api.kinds import BARE_REASON, ItemT, RecordT
from async_bento.api.labels import as_dict, as_items, change_labels, lost_labels, written
from async_bento.errors import (
    APIError,
    AuthenticationError,
    BentoError,
    ConfigError,
    NotFoundError,
    SourceChangedError,
    StoreError,
    with_message,
)
from async_bento.rest.schemas import UPLOADED
from async_bento.transfer.journal import Journal
from async_bento.transfer.source import DirectorySource
from async_bento.transfer.tar.plan import TarPlan
from async_bento.transfer.upload import Registration, Upload

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from pathlib import Path

    from async_bento._core.tag import Tag
    from async_bento.api.kinds import Kind, RecordBodies
    from async_bento.api.resources import Resources
    from async_bento.progress.events import Progress
    from async_bento.rest.request_schemas import (
        CreateBentoSchema,
        CreateModelSchema,
        UpdateBentoSchema,
        UpdateModelSchema,
    )
    from async_bento.rest.schemas import ItemSchema
    from async_bento.store.locks import Lock
    from async_bento.transfer.multipart import UploadResult
    from async_bento.transfer.source import UploadSource

logger = logging.getLogger(__package__)


@dataclass(frozen=True)
class PushResult:
    """The outcome of a push.

    Attributes:
        tag: The tag of the pushed item.
        skipped: Whether the registry had the item already.
        resumed: Whether the push resumed an interrupted one.
        bytes_sent: Bytes of the tar that this push sent.
        parts: Requests that carried these bytes.
        seconds: Duration in seconds, including the models of a bento.
        models: The outcome of each model of a bento.
        labels: The labels of the call that the push has set, like `stage=prod`; of a skipped item, those that its
            record did not have.
        dropped_labels: Labels that the record had, and that the push has dropped or given another value.
    """

    tag: Tag
    skipped: bool = False
    resumed: bool = False
    bytes_sent: int = 0
    parts: int = 0
    seconds: float = 0.0
    models: tuple[PushResult, ...] = ()
    labels: tuple[str, ...] = ()
    dropped_labels: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        results = (self, *self.models)
        head = ("TAG", "OUTCOME", "SENT", "PARTS", "SECONDS")
        return table(head, map(_row, results), total=len(results), noun="items", caption=_summary(self))


def _summary(result: PushResult) -> str:
    models = f" and {_count_words(len(result.models))}" if result.models else ""
    sent = sum(pushed.bytes_sent for pushed in (result, *result.models))
    if sent:
        return f"pushed {result.tag}{models}: {human_size(sent)} in {result.seconds:.1f} s"
    if all(pushed.skipped for pushed in (result, *result.models)):
        return f"skipped {result.tag}{models}: already pushed"
    return f"pushed the record of {result.tag}"


def _row(result: PushResult) -> tuple[str, ...]:
    if result.skipped:
        outcome = "already pushed"
    elif not result.parts:
        outcome = "record only"
    else:
        outcome = "resumed" if result.resumed else "pushed"
    sent = human_size(result.bytes_sent) if result.parts else ""
    return str(result.tag), outcome, sent, str(result.parts or ""), f"{result.seconds:.1f}"


@dataclass(frozen=True)
class PushOptions:
    """The options of one push; `threads` bounds the parts in flight per item, `labels` are added to the item's."""

    force: bool
    threads: int
    bare: bool = False
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    keep_labels: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"invalid threads {self.threads}: a push needs at least one. Pass 1 or more.")


class Prepared(NamedTuple):
    """What a push sends, None for the record alone, and the bodies that make the record."""

    source: UploadSource | None
    bodies: RecordBodies


class Pusher(Generic[ItemT, RecordT]):
    """Pushes items of one kind, for one call of `push`."""

    def __init__(self, resources: Resources, kind: Kind[ItemT, RecordT], options: PushOptions) -> None:
        self.resources = resources
        self.kind: Kind[ItemT, RecordT] = kind
        self._options = options
        self._repositories: set[str] = set()  # known to exist
        self._repository_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._dropped_labels: dict[Tag, tuple[str, ...]] = {}
        self._outcomes: dict[Tag, PushResult | BentoError] = {}
        self._item_locks: defaultdict[Tag, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def push(
        self, item: ItemT, *, already_pushed: bool = False, models: tuple[PushResult, ...] = ()
    ) -> PushResult:
        """Push one item. `already_pushed`: the registry is known to have it; `models`: the outcome of its models."""
        with self.resources.progress("push", self.kind.word, item.tag) as progress:
            progress.note = count_models(models)
            prepare = None if already_pushed else partial(self._prepare, item)
            return await self.send(item.tag, prepare, progress, models)

    async def send(
        self,
        tag: Tag,
        prepare: Callable[[], Awaitable[Prepared]] | None,
        progress: Progress,
        models: tuple[PushResult, ...] = (),
    ) -> PushResult:
        """Send what `prepare` finds, unless the registry has it already; None: it is known to have it."""
        started = time.monotonic()
        async with self._exclusively(tag, progress) as journal:
            upload = Upload(self.kind.routes, tag, self.resources.pool, progress, journal)
            result = None if prepare is None else await self._register_and_send(tag, prepare, upload)
            if result is None:
                labels = await self._label(tag)
                progress.enter("skipped", "already pushed" + (f", set {', '.join(labels)}" if labels else ""))
                await upload.discard_journal()  # left by a push that was killed at its very end
                seconds = time.monotonic() - started
                return PushResult(tag, skipped=True, seconds=seconds, models=models, labels=labels)
        return PushResult(
            tag,
            resumed=result.resumed,
            bytes_sent=result.bytes_sent,
            parts=result.parts,
            seconds=time.monotonic() - started,
            models=models,
            labels=written(self._options.labels),
            dropped_labels=self._dropped_labels.get(tag, ()),
        )

    async def once(self, tag: Tag, push: Callable[[], Awaitable[PushResult]]) -> PushResult:
        """Push an item that several pushed items may need; after the first time, it is skipped or fails again."""
        async with self._item_locks[tag]:
            match self._outcomes.get(tag):
                case None:
                    pass
                case PushResult() as result:
                    return PushResult(result.tag, skipped=True, models=result.models)
                case error:
                    # A copy: the first task may still be raising the error itself.
                    raise with_message(error, str(error)) from error.__cause__
            try:
                result = self._outcomes[tag] = await push()
            except BentoError as error:
                self._outcomes[tag] = error
                raise
            return result

    async def needs_no_push(self, tag: Tag) -> bool:
        """Whether this push would skip an item; False where the registry fails to answer.

        Raises the errors that every other request would meet, too: a refused token, a registry that is out of reach.
        """
        force, session = self._options.force, self.kind.routes.session
        # A forced push asks only a registry that was never reached, for its errors.
        if force and session.is_reached:
            return False
        try:
            remote = await self.kind.routes.get(tag.name, tag.version or "")
        except AuthenticationError:
            raise
        except APIError:
            if not session.is_reached:
                raise
            return False
        return _is_pushed(remote) and not force

    async def ensure_repository(self, name: str) -> None:
        """Create a repository where there is none, once, however many of its items are pushed concurrently."""
        async with self._repository_locks[name]:
            if name in self._repositories:
                return
            if await self.kind.routes.get_repository(name) is None:
                await self._create_repository(name)
            self._repositories.add(name)

    async def create_record(self, tag: Tag, body: CreateBentoSchema | CreateModelSchema) -> RecordT | None:
        """Create a record; None where it exists all the same: created by another process, or the response was lost."""
        routes, retries = self.kind.routes, Retries(self.resources.client.config.retry)
        while True:
            try:
                return await routes.create(tag.name, body, attempt=retries.failures + 1)
            except APIError as error:
                if await _exists(routes.get(tag.name, tag.version or "")):
                    return None
                if not await retries.wait_after(error):
                    raise

    async def _create_repository(self, name: str) -> None:
        routes, retries = self.kind.routes, Retries(self.resources.client.config.retry)
        while True:
            try:
                await routes.create_repository(name, attempt=retries.failures + 1)
            except APIError as error:
                # Another process may have created it, or only the response was lost.
                if await _exists(routes.get_repository(name)):
                    return
                if not await retries.wait_after(error):
                    raise
            else:
                return

    @asynccontextmanager
    async def _exclusively(self, tag: Tag, progress: Progress) -> AsyncGenerator[Journal | None]:
        """Hold the lock of this push among processes, and yield its journal.

        Both only save work: where the store cannot be written, the push goes without them.
        """
        threads, store, endpoint = self.resources.threads, self.kind.store, self.kind.endpoint

        def prepare() -> tuple[Lock, Path]:
            return store.push_lock(tag, endpoint), store.journal(tag, endpoint)

        async with AsyncExitStack() as stack:
            journal: Journal | None = None
            try:
                lock, path = await threads.run(prepare)
                waiting = partial(progress.enter, "planning", "waiting: another process is pushing this version")
                await stack.enter_async_context(hold_lock(lock, threads, waiting))
                journal = Journal(path) if self.resources.config.transfer.resume else None
            except StoreError as error:
                logger.warning("an interrupted %s of %s cannot be resumed: %s", progress.direction, tag, error)
            yield journal

    async def _register_and_send(
        self, tag: Tag, prepare: Callable[[], Awaitable[Prepared]], upload: Upload
    ) -> UploadResult | None:
        """Create the record, or update it once its bytes are there; None where the registry has the item already."""
        routes, name, version = self.kind.routes, tag.name, tag.version or ""
        remote = await routes.get(name, version)  # first: an item that is pushed costs one request
        if _is_pushed(remote) and not self._options.force:
            return None
        source, bodies = await prepare()
        created: RecordT | None = None
        if remote is None:
            await self.ensure_repository(name)
            # A cancelled request may have created the record; after a failed one, `create_record` has looked.
            async with upload.failure_reported(asyncio.CancelledError):
                created = await self.create_record(tag, bodies.create)
            if created is None:
                remote = await routes.get(name, version)
                if _is_pushed(remote) and not self._options.force:
                    return None
        if created is not None:
            registration = Registration(created)
        elif remote is not None:
            update = partial(self._update_record, tag, bodies.update)
            registration = Registration(remote, update, is_whole=_is_pushed(remote))
        else:
            raise NotFoundError(
                f"cannot {upload.progress.direction} {tag}: its record was deleted meanwhile. Try again."
            )
        if source is None:
            return await upload.skip(registration, BARE_REASON)
        return await upload.send(source, registration, self._options.threads)

    async def _label(self, tag: Tag) -> tuple[str, ...]:
        """Set the labels of the call on an item that the registry has already; return those that it did not have."""
        labels = self._options.labels
        if not labels:
            return ()
        before = (await change_labels(self.kind.routes, tag, labels)).before
        return written({key: value for key, value in labels.items() if before.get(key) != value})

    async def _update_record(self, tag: Tag, body: UpdateBentoSchema | UpdateModelSchema) -> None:
        """Let an existing record describe the new bytes. Its labels are replaced, unless they are to be kept."""
        routes, name, version = self.kind.routes, tag.name, tag.version or ""
        # Read now: the item may have been promoted during a long upload.
        remote = await routes.get(name, version)
        before = as_dict(remote.labels) if remote else {}
        if self._options.keep_labels:
            body = body.model_copy(update={"labels": as_items({**before, **as_dict(body.labels)})})
        await routes.update(name, version, body)
        if dropped := lost_labels(before, as_dict(body.labels), self._options.labels):
            self._dropped_labels[tag] = dropped
            hint = "" if self._options.keep_labels else " Use keep_labels (--keep-labels) to keep such labels."
            message = "the push has dropped labels of %s %s in the registry: %s.%s"
            logger.warning(message, self.kind.word, tag, ", ".join(dropped), hint)

    async def _prepare(self, item: ItemT) -> Prepared:
        """Scan the directory and make the record before anything is registered."""
        tag, bare, threads = item.tag, self._options.bare, self.resources.threads
        plan = None if bare else await threads.run(TarPlan.scan, item.path, exclude=self.kind.excluded)
        # Read after the scan: the record of an item that was replaced meanwhile must not go with the other's files.
        current = await threads.run(type(item).from_path, item.path)
        if current.tag != tag:
            path = str(item.path / item.METADATA_FILE)
            raise SourceChangedError(
                f"cannot push {tag}: {path} belongs to {current.tag} now. Push {current.tag} instead.", path=path
            )
        source = None if plan is None else DirectorySource(plan, self.resources.pool)
        bodies = await threads.run(self.kind.record_bodies, current, bare)
        return Prepared(source, bodies.with_labels(self._options.labels))


def _is_pushed(remote: ItemSchema | None) -> bool:
    return remote is not None and remote.upload_status == UPLOADED


async def _exists(request: Awaitable[object | None]) -> bool:
    """Whether what could not be created exists all the same; False where that cannot be asked either."""
    with suppress(APIError):
        return await request is not None
    return False


def count_models(models: tuple[PushResult, ...]) -> str:
    """Return the number of models, and how many of them were skipped, in words."""
    if not models:
        return ""
    skipped = sum(model.skipped for model in models)
    return _count_words(len(models)) + (f", {skipped} skipped" if skipped else "")


def _count_words(models: int) -> str:
    return f"{models} model{'s' if models > 1 else ''}"
