"""The local stores in BentoML's layout: `$BENTOML_HOME/bentos` and `$BENTOML_HOME/models`.

    <base>/<name>/<version>/bento.yaml …    an item, see `layout.py`
    <base>/<name>/latest                    the version with the newest creation time, see `latest.py`
    <base>/../tmp/async-bento-…             staging directories and locks, see `staging.py` and `places.py`

BentoML and this package read each other's items. Every method blocks and may be called from any thread. A lock per name
keeps processes apart, and is held only while an item is moved. BentoML ignores the locks, but an item appears and
disappears in one step, so BentoML never reads a part of one.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from async_bento._core import platform
from async_bento._core.files import fsync_path
from async_bento._core.tag import LATEST, Tag
from async_bento.config import bentoml_home
from async_bento.errors import ConfigError, InvalidTagError, NotFoundError, StoreError
from async_bento.store.commit import Commit
from async_bento.store.errors import as_store_error
from async_bento.store.filesystem import move_aside
from async_bento.store.items import Bento, Model
from async_bento.store.latest import LatestFiles, write_latest
from async_bento.store.layout import ItemT, Layout, abbreviate, list_tag_parts
from async_bento.store.locks import hold
from async_bento.store.moves import ITEM
from async_bento.store.staging import STATE, StagingArea

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Sequence

    from async_bento._core.tag import AnyTag
    from async_bento.store.locks import Lock

logger = logging.getLogger(__package__)

_NAME_TIMEOUT = 60.0
"""Seconds to wait for the lock of a name. It is held for moments, unless its process is stopped or its disk hangs."""


class Store(Generic[ItemT]):
    """Bentos or models below one directory. Its methods are the public ones of `BentoStore` and `ModelStore`."""

    def __init__(self, item_type: type[ItemT], base_path: str | os.PathLike[str] | None, directory: str) -> None:
        self.item_type = item_type
        self._base_path = base_path
        self._directory = directory  # below the home, where no path is passed
        # Made here with all that it uses: on first use, several threads would make several of each.
        with suppress(ConfigError):  # no home: raised by the first use, since a list or a pull elsewhere uses no store
            _ = self._latest

    @property
    def path(self) -> Path:
        """The directory, absolute."""
        return self._path

    @cached_property
    def _path(self) -> Path:
        base = bentoml_home() / self._directory if self._base_path is None else Path(self._base_path)
        return base.absolute()

    @cached_property
    def _layout(self) -> Layout[ItemT]:
        return Layout(self.item_type, self.path)

    @cached_property
    def _staging(self) -> StagingArea:
        return StagingArea(self.path)

    @cached_property
    def _latest(self) -> LatestFiles[ItemT]:
        return LatestFiles(self._layout, self._staging)

    def __repr__(self) -> str:
        path = ""
        with suppress(ConfigError):  # no home
            path = repr(str(self.path))
        return f"{type(self).__name__}({path})"

    def get(self, tag: AnyTag, *, prefix: bool = True) -> ItemT:
        """Find one item.

        Args:
            tag: The item's tag; a name alone or `name:latest` means the newest version.
            prefix: Whether the version may be abbreviated to a prefix that only one version has, as in BentoML.

        Returns:
            The item.

        Raises:
            InvalidTagError: The tag breaks the rules for tags.
            NotFoundError: No item has this tag, or several versions have the prefix. The message lists similar ones.
            StoreError: The item's YAML file is missing or broken, or the store cannot be read.
        """
        tag = Tag.parse(tag)
        with as_store_error(f"read {self.path}"):
            if tag.version is None or tag.version == LATEST:
                return self._get_latest(tag)
            if self._layout.path(tag).is_dir():
                return self._layout.load(tag)
            if prefix:
                return self._get_by_prefix(tag, tag.version)
            raise self._layout.not_found(tag)

    def list(self, tag: AnyTag | None = None) -> Sequence[ItemT]:
        """List items, sorted by tag. A broken item is skipped, and a warning logged.

        Args:
            tag: A name to list its versions, a tag to list only that item, or None to list everything.

        Returns:
            The items.

        Raises:
            InvalidTagError: The tag breaks the rules for tags.
            NotFoundError: No item has this name.
            StoreError: The store cannot be read.
        """
        if tag is None:
            return [item for name in list_tag_parts(self.path) for item in self._layout.load_versions(name)]
        tag = Tag.parse(tag)
        if tag.version is None:
            with as_store_error(f"read {self.path}"):
                if not self._layout.directory(tag.name).is_dir():
                    raise self._layout.not_found(tag)
                return self._layout.load_versions(tag.name)
        try:
            return [self.get(tag, prefix=False)]
        except NotFoundError:
            return []

    def lock(self, tag: AnyTag) -> Lock:
        """Make a lock for pulling one item, so that processes do not download the same item at the same time.

        `commit` and `delete` do not need this lock: they keep the store whole with locks of their own.

        Args:
            tag: The item's tag, with a version.

        Returns:
            The lock, not yet acquired.

        Raises:
            InvalidTagError: The tag breaks the rules for tags, or has no version.
            StoreError: The tag is the name of a device on Windows.
        """
        self._check_names(self._with_version(tag))
        return self._staging.lock(self._file_name(tag))

    def push_lock(self, tag: AnyTag, endpoint: str) -> Lock:
        """Make a lock for pushing one item to one registry, so that processes do not upload the same item twice.

        Args:
            tag: The item's tag, with a version.
            endpoint: The registry's URL.

        Returns:
            The lock, not yet acquired.

        Raises:
            InvalidTagError: The tag breaks the rules for tags, or has no version.
        """
        return self._staging.lock(self._push_file_name(tag, endpoint))

    def journal(self, tag: AnyTag, endpoint: str) -> Path:
        """Name the file in which a push records the parts it has uploaded. Hold `push_lock` while you use it.

        Args:
            tag: The item's tag, with a version.
            endpoint: The registry's URL.

        Returns:
            The file's path, in a directory that exists. The file is removed a week after its last write.

        Raises:
            InvalidTagError: The tag breaks the rules for tags, or has no version.
            StoreError: The directory cannot be made.
        """
        return self._staging.kept_file(self._push_file_name(tag, endpoint))

    @contextmanager
    def stage(self, resume: AnyTag | None = None) -> Generator[Path]:
        """Make an empty directory, on the filesystem of the store, in which to assemble an item for `commit`.

        What is not committed when the block ends is removed. The directory of a killed process is removed by the next
        call.

        Args:
            resume: A tag. If the block fails after it wrote the file `state_of(staged)`, the directory is kept for a
                week, and the next block with this tag continues in it. Hold `lock(tag)` meanwhile.

        Yields:
            The directory.

        Raises:
            InvalidTagError: `resume` breaks the rules for tags, or has no version.
            StoreError: The directory cannot be made, or the store cannot be written.
        """
        file_name = None
        if resume is None:
            self._staging.recover()
        else:
            file_name = self._file_name(resume)
            self.recover(resume)  # now, since a block that fails makes no commit that would update `latest`
        with self._staging.directory(file_name) as temporary:
            # The temporary directory is closed to other users, and an item must not be: hence one level deeper.
            staged = temporary / ITEM
            with as_store_error(f"write to {self.path}"):
                staged.mkdir(exist_ok=True)
            yield staged

    def recover(self, tag: AnyTag) -> None:
        """Finish or remove what crashed processes left, except resumable state.

        Where a process was killed between the commit of an item and the update of `latest`, `latest` is updated.

        Args:
            tag: A tag whose name is in the store.

        Raises:
            InvalidTagError: The tag breaks the rules for tags.
            StoreError: The store cannot be read.
        """
        self._staging.recover()
        name = Tag.parse(tag).name
        if self._latest.read(name) is None:
            self._latest.repair(name)

    def prune(self, *, dry_run: bool = False) -> dict[Path, int]:
        """Remove the files of interrupted transfers, except those of running processes; such a transfer starts again.

        Stores with the same parent directory, like those of bentos and models, share the directory of these files.

        Args:
            dry_run: Whether to remove nothing, and only return what would be removed.

        Returns:
            The size in bytes of each removed file or directory.

        Raises:
            StoreError: The store cannot be written.
        """
        return self._staging.prune(dry_run=dry_run)

    @staticmethod
    def state_of(staged: Path) -> Path:
        """Name the file that makes a staging directory resumable.

        Args:
            staged: The directory, from `stage`.

        Returns:
            The path of the file, outside the directory.
        """
        return staged.parent / STATE

    def commit(self, staged: str | os.PathLike[str], tag: AnyTag, *, replace: bool = False) -> ItemT:
        """Move a staged item into the store in one step, so that no reader sees a part of it.

        The files are flushed to the disk before that step, and the step before the method returns: a power failure
        leaves the old item or the new one.

        Args:
            staged: The directory, from `stage`.
            tag: The tag that the item's YAML file must have, with a version.
            replace: Whether to replace an item with this tag. Without it, an item in the store stays and is returned,
                and the staged directory stays where it is.

        Returns:
            The item in the store.

        Raises:
            InvalidTagError: The tag breaks the rules for tags, or has no version.
            StoreError: The staged directory is not an item with this tag; the item that stays is broken; or the disk is
                full, read-only or not writable for this user.
        """
        commit = self.start_commit(staged, tag, replace=replace)
        with hold(commit.lock, _NAME_TIMEOUT, commit.action):
            item = commit.run()
        commit.finish()
        return item

    def start_commit(self, staged: str | os.PathLike[str], tag: AnyTag, *, replace: bool = False) -> Commit[ItemT]:
        """Check a staged item and flush its files; `commit` in steps, for callers that wait for its lock elsewhere.

        Args:
            staged: As in `commit`.
            tag: As in `commit`.
            replace: As in `commit`.

        Returns:
            The commit, to `run` while its `lock` is held, and then to `finish`.

        Raises:
            InvalidTagError: As in `commit`.
            StoreError: As in `commit`.
        """
        tag = self._with_version(tag)
        self._check_names(tag)
        commit = Commit(self._latest, Path(staged), tag, replace=replace)
        commit.prepare()
        return commit

    def delete(self, tag: AnyTag) -> None:
        """Remove an item.

        Args:
            tag: The item's tag, with the whole version; `name:latest` means the newest.

        Raises:
            InvalidTagError: The tag breaks the rules for tags, or has no version.
            NotFoundError: No item has this tag.
            StoreError: The item cannot be removed.
        """
        tag = Tag.parse(tag)
        if tag.version is None:
            raise InvalidTagError(f"cannot delete {tag}: the tag has no version. Did you mean `{tag}:{LATEST}`?")
        if tag.version == LATEST:
            tag = self.get(tag).tag
        directory = self._layout.directory(tag.name)
        self._staging.recover()
        action = f"delete {tag} from {self.path}"
        with (
            as_store_error(action),
            self._staging.directory() as aside,
            hold(self._staging.name_lock(tag.name), _NAME_TIMEOUT, action),
        ):
            try:
                move_aside(self._layout.path(tag), aside / ITEM)
            except FileNotFoundError as error:
                raise self._layout.not_found(tag, download=False) from error
            # Before the files are removed: otherwise a power failure may bring the item back with a part of its files.
            fsync_path(directory)
            if not self._layout.has_other_versions(tag):
                write_latest(directory, None, aside / LATEST)
            with suppress(OSError):  # the name has other versions
                directory.rmdir()
        if self._latest.read(tag.name) is None:
            self._latest.repair(tag.name)

    def _get_latest(self, tag: Tag) -> ItemT:
        for _ in range(3):  # another process may delete the version between the two reads
            version = self._latest.read(tag.name) or self._latest.repair(tag.name)
            if version is None:
                break
            with suppress(NotFoundError):
                return self._layout.load(Tag(tag.name, version))
        raise self._layout.not_found(tag)

    def _get_by_prefix(self, tag: Tag, prefix: str) -> ItemT:
        versions = [version for version in self._layout.versions(tag.name) if version.startswith(prefix)]
        if not versions:
            raise self._layout.not_found(tag)
        if len(versions) > 1:
            raise NotFoundError(
                f"no {self.item_type.TYPE_NAME} {tag} in {self.path}: "
                f"{len(versions)} versions begin with {prefix} ({abbreviate(versions)}). Write the whole version."
            )
        return self._layout.load(Tag(tag.name, versions[0]))

    def _check_names(self, tag: Tag) -> None:
        """Raise StoreError for a tag like `aux:v1` on Windows, before anything is downloaded."""
        if reason := platform.refusal_of_name(f"{tag.name}/{tag.version}"):
            raise StoreError(f"cannot write {tag} to {self.path}: {reason}. Pull to a directory instead.")

    def _file_name(self, tag: AnyTag) -> str:
        tag = self._with_version(tag)
        # Stores with the same parent directory share a staging area. No part of a tag contains a plus.
        return f"{self._staging.base.name}+{tag.name}+{tag.version}"

    def _push_file_name(self, tag: AnyTag, endpoint: str) -> str:
        # A URL is not a valid file name; 64 bits distinguish the few registries of one user.
        registry = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
        return f"push+{self._file_name(tag)}+{registry}"

    @staticmethod
    def _with_version(tag: AnyTag) -> Tag:
        tag = Tag.parse(tag)
        if tag.version is None or tag.version == LATEST:
            raise InvalidTagError(f"invalid tag {str(tag)!r}: an exact version is needed. Write `{tag.name}:VERSION`.")
        return tag


class BentoStore(Store[Bento]):
    """The bentos on this disk, shared with BentoML.

    Every method blocks, and may be called from any thread.

    Args:
        base_path: The directory of the bentos; None for `$BENTOML_HOME/bentos`. It is made with the first bento.

    Attributes:
        path: The directory, absolute.
    """

    def __init__(self, base_path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(Bento, base_path, "bentos")


class ModelStore(Store[Model]):
    """The models on this disk, shared with BentoML.

    Every method blocks, and may be called from any thread.

    Args:
        base_path: The directory of the models; None for `$BENTOML_HOME/models`. It is made with the first model.

    Attributes:
        path: The directory, absolute.
    """

    def __init__(self, base_path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(Model, base_path, "models")

    def total_size(self, bento: Bento) -> int:
        """Count a bento's bytes and those of its models, as BentoML does for `size_bytes` of a manifest.

        A model inside the bento's directory counts as part of the bento. A model on Hugging Face does not count, and
        neither does a missing one, for which a warning is logged.

        Args:
            bento: The bento.

        Returns:
            The size, in bytes.

        Raises:
            StoreError: A model is broken.
        """
        inside = ModelStore(bento.path / "models")
        size = bento.size()
        for model in bento.models:
            if model.is_huggingface:
                continue
            with suppress(NotFoundError):
                inside.get(model.tag)
                continue
            try:
                size += self.get(model.tag).size()
            except NotFoundError:
                logger.warning(
                    "the size of %s does not include its model %s: %s does not have the model",
                    bento.tag,
                    model.tag,
                    self.path,
                )
        return size
