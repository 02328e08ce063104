"""The stores on this disk, in BentoML's own layout: `$BENTOML_HOME/bentos` and `$BENTOML_HOME/models`.

    <base>/<name>/<version>/bento.yaml …    one item
    <base>/<name>/latest                    the version with the newest creation time
    <base>/../tmp/async-bento-…             scratch and locks, see `scratch.py`

What is read was written by BentoML or by us, and BentoML reads what is written here. Every method blocks and may be
called from any thread; processes keep out of each other's way by a lock per name, held for the moment of a change only.
BentoML knows no locks, but it never sees anything unfinished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from async_bento._core.files import fsync_path
from async_bento.config import bentoml_home
from async_bento.errors import InvalidTagError, NotFoundError, StoreError
from async_bento.store.filesystem import as_store_error, move_aside, remove_tree, sync_tree
from async_bento.store.items import Bento, Item, Model
from async_bento.store.layout import abbreviate, closest, directories, read_latest, write_latest
from async_bento.store.staging import ITEM, STATE, Scratch, check_reach, place
from async_bento.store.tag import LATEST, Tag, TagLike

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from datetime import datetime

    from async_bento.store.locks import Lock

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT", bound=Item)


class Store(Generic[ItemT]):
    """Bentos or models below one directory.

    Args:
        item_type: Which of the two.
        base_path: The directory; it is made when the first item is.
    """

    def __init__(self, item_type: type[ItemT], base_path: Path) -> None:
        self.item_type = item_type
        self.path = base_path.absolute()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @cached_property
    def _real(self) -> Path:
        """Where the base is a link, its target's filesystem is the one to rename on."""
        return self.path.resolve()

    @cached_property
    def _scratch(self) -> Scratch:
        return Scratch(self._real.parent / "tmp")

    def get(self, tag: TagLike | str, *, prefix: bool = True) -> ItemT:
        """Find one item.

        Args:
            tag: Its tag; a name or `name:latest` means the newest.
            prefix: Whether the beginning of a version will do, where only one version begins so.

        Returns:
            The item.

        Raises:
            InvalidTagError: That is no tag.
            NotFoundError: There is none, or more than one begins so. The message says what there is and would help.
            StoreError: There is one, and it is broken.
        """
        tag = Tag.parse(tag)
        with as_store_error(f"read {self.path}"):
            if tag.version is None or tag.version == LATEST:
                return self._get_latest(tag)
            if self._directory(tag).is_dir():
                return self._load(tag)
            begun = [known for known in directories(self.path / tag.name) if prefix and known.startswith(tag.version)]
            if len(begun) == 1:
                return self._load(Tag(tag.name, begun[0]))
            if begun:
                raise NotFoundError(
                    f"{tag} is the beginning of more than one {self.item_type.WORD}: {abbreviate(begun)}"
                )
            raise self._not_found(tag)

    def list(self, tag: TagLike | str | None = None) -> Sequence[ItemT]:
        """List items, sorted by tag. A broken one is left out, and a warning logged.

        Args:
            tag: A name, for its versions only; a tag, for that item only; None for everything.

        Returns:
            The items.

        Raises:
            InvalidTagError: That is no tag.
            NotFoundError: There is no such name.
        """
        if tag is None:
            return [item for name in directories(self.path) for item in self._load_all(name)]
        tag = Tag.parse(tag)
        if tag.version is None:
            with as_store_error(f"read {self.path}"):
                if not (self.path / tag.name).is_dir():
                    raise self._not_found(tag)
                return self._load_all(tag.name)
        try:
            return [self.get(tag, prefix=False)]
        except NotFoundError:
            return []

    def lock(self, tag: TagLike | str) -> Lock:
        """Make a lock on a tag, for who wants to be the only one to bring this item into the store.

        It guards the work, not the store: `commit` and `delete` keep the store whole by themselves, with or without it.

        Args:
            tag: The tag, with a version.

        Returns:
            The lock, not yet taken.

        Raises:
            InvalidTagError: That is no tag, or has no version.
        """
        return self._scratch.lock(self._scratch_name(self._exact(tag)))

    def push_lock(self, tag: TagLike | str, endpoint: str) -> Lock:
        """Make a lock on a push, for who wants to be the only one to send this item to a registry.

        Args:
            tag: The tag, with a version.
            endpoint: The registry's URL.

        Returns:
            The lock, not yet taken.

        Raises:
            InvalidTagError: That is no tag, or has no version.
        """
        return self._scratch.lock(self._push_name(tag, endpoint))

    def journal(self, tag: TagLike | str, endpoint: str) -> Path:
        """Name the file in which a push notes what has arrived. Hold `push_lock` meanwhile.

        Args:
            tag: The tag, with a version.
            endpoint: The registry's URL.

        Returns:
            The file, in a directory that is there. It is removed a week after it was last written.

        Raises:
            InvalidTagError: That is no tag, or has no version.
            StoreError: The directory cannot be made.
        """
        return self._scratch.kept_file(self._push_name(tag, endpoint))

    @contextmanager
    def stage(self, resume: TagLike | str | None = None) -> Generator[Path]:
        """Make an empty directory in which an item is put together, on the filesystem of the store.

        What has not been committed at the block's end is removed. A killed process's directory is removed when the next
        is made.

        Args:
            resume: A tag. When the block fails and has written the file that `state_of` names, what was staged is kept
                for a week, and the next block for this tag begins with it. Hold `lock(tag)` meanwhile.

        Yields:
            The directory.

        Raises:
            StoreError: It cannot be made, or lies on another filesystem than the store.
        """
        keep = None if resume is None else self._scratch_name(self._exact(resume))
        if resume is not None:  # also where this one fails, what another had brought is the latest
            self.tidy(resume)
        with self._scratch.directory(keep) as outer:
            # One deeper, because the outer is closed to other users and an item must not be.
            staged = outer / ITEM
            with as_store_error(f"write to {self.path}"):
                staged.mkdir(exist_ok=True)
                check_reach(self.path, outer)
            yield staged

    def tidy(self, tag: TagLike | str) -> None:
        """Bring to an end what killed processes have begun, but what can be gone on with.

        What they left beside the store is removed; and where one had brought an item, and not yet said that it is the
        latest, that is said now, since BentoML does not find the latest by itself.

        Args:
            tag: An item that is in the store.
        """
        self._scratch.sweep()
        name = Tag.parse(tag).name
        if self._read_latest(name) is None:
            self._repair_latest(name)

    @staticmethod
    def state_of(staged: Path) -> Path:
        """Name the file that says how to go on with a staged directory.

        Args:
            staged: The directory, from `stage`.

        Returns:
            Its path, beside the directory.
        """
        return staged.parent / STATE

    def commit(self, staged: str | os.PathLike[str], tag: TagLike | str, *, replace: bool = False) -> ItemT:
        """Take a staged item into the store, in one step: nobody sees a part of it.

        Its files are on the disk before that step, and the step is before this returns: a loss of power, too, leaves
        the old item or the new one. It takes as long as the disk takes to write what is still in memory.

        Args:
            staged: The directory, from `stage`.
            tag: The tag it must have.
            replace: Whether it takes the place of an item with this tag, which stands until that moment. Else that
                one stays and is what is returned, and the staged one remains where it is.

        Returns:
            The item in the store.

        Raises:
            InvalidTagError: That is no tag, or has no version.
            StoreError: The staged directory is no item with this tag; the item that stays is broken; the disk is
                full, read-only or not ours.
        """
        tag = self._exact(tag)
        staged = Path(staged)
        item = self._load(tag, staged)
        target = self._directory(tag)
        with as_store_error(f"write {tag} to {self.path}"):
            sync_tree(staged)  # before the lock: others need not wait for this disk
            with self._scratch.directory() as aside, self._changing(tag.name):
                replaced = os.path.lexists(target)
                if replaced and not replace:
                    item = self._load(tag)
                else:
                    place(staged, target, aside)
                    item = dataclasses.replace(item, path=target)
                self._note(tag, item, aside)
                fsync_path(target.parent)
        if replaced and replace:
            try:
                remove_tree(staged)
            except OSError:
                logger.warning("could not remove %s, which was replaced", staged, exc_info=True)
        return item

    def delete(self, tag: TagLike | str) -> None:
        """Remove an item.

        Args:
            tag: Its tag, in full; `name:latest` means the newest.

        Raises:
            InvalidTagError: That is no tag, or has no version.
            NotFoundError: There is no such item.
            StoreError: It cannot be removed.
        """
        tag = Tag.parse(tag)
        if tag.version is None:
            raise InvalidTagError(f"{tag} names no version to delete; did you mean `{tag}:{LATEST}`?")
        if tag.version == LATEST:
            tag = self.get(tag).tag
        with (
            as_store_error(f"delete {tag} from {self.path}"),
            self._scratch.directory() as aside,
            self._changing(tag.name),
        ):
            try:
                move_aside(self._directory(tag), aside / ITEM)
            except FileNotFoundError as error:
                raise self._not_found(tag) from error
            # What is removed for good must not come back in parts.
            fsync_path(self.path / tag.name)
            self._forget(tag.name, aside)

    def _get_latest(self, tag: Tag) -> ItemT:
        for _ in range(3):  # what `latest` names may be deleted before it is read
            version = self._read_latest(tag.name) or self._repair_latest(tag.name)
            if version is None:
                break
            with suppress(NotFoundError):
                return self._load(Tag(tag.name, version))
        raise self._not_found(tag)

    def _load(self, tag: Tag, path: Path | None = None) -> ItemT:
        item = self.item_type.from_path(path or self._directory(tag))
        if item.tag != tag:
            raise StoreError(f"{item.path / item.YAML} is that of {item.tag}, not of {tag}")
        return item

    def _load_all(self, name: str) -> Sequence[ItemT]:
        items: list[ItemT] = []
        for version in directories(self.path / name):
            try:
                items.append(self._load(Tag(name, version)))
            except NotFoundError:
                pass  # deleted since it was listed
            except StoreError as error:
                logger.warning("left out a broken %s: %s", self.item_type.WORD, error)
        return items

    def _directory(self, tag: Tag) -> Path:
        return self.path / tag.name / (tag.version or "")

    @staticmethod
    def _exact(tag: TagLike | str) -> Tag:
        tag = Tag.parse(tag)
        if tag.version is None or tag.version == LATEST:
            raise InvalidTagError(f"{tag} names no version")
        return tag

    def _scratch_name(self, tag: Tag) -> str:
        # Stores side by side share their scratch; no part of a tag has a plus.
        return f"{self._real.name}+{tag.name}+{tag.version}"

    def _push_name(self, tag: TagLike | str, endpoint: str) -> str:
        registry = hashlib.sha256(endpoint.encode()).hexdigest()[:16]  # a URL is no file name
        return f"push+{self._scratch_name(self._exact(tag))}+{registry}"

    @contextmanager
    def _changing(self, name: str) -> Generator[None]:
        with self._scratch.lock(f"{self._real.name}+{name}"):
            yield

    def _newest(self, name: str, came_last: str | None = None) -> str | None:
        """The version with the newest creation time; of several, the one that came last, or else the highest."""

        def age(item: ItemT) -> tuple[datetime, bool, str]:
            version = item.tag.version or ""
            return item.creation_time, version == came_last, version

        newest = max(self._load_all(name), key=age, default=None)
        return None if newest is None else newest.tag.version

    def _read_latest(self, name: str) -> str | None:
        return read_latest(self.path / name)

    def _write_latest(self, name: str, version: str | None, aside: Path) -> None:
        write_latest(self.path / name, version, temp_path=aside / LATEST)

    def _repair_latest(self, name: str) -> str | None:
        if not directories(self.path / name):
            return None
        # A store that can only be read is read all the same.
        with suppress(OSError, StoreError), self._scratch.directory() as aside, self._changing(name):
            version = self._read_latest(name) or self._newest(name)
            self._write_latest(name, version, aside)
            return version
        return self._newest(name)

    def _note(self, tag: Tag, item: ItemT, aside: Path) -> None:
        """Set `latest` after an item has come; of two that are equally new, the one that came last is the latest."""
        current = self._read_latest(tag.name)
        if current is not None and current != tag.version:
            with suppress(NotFoundError, StoreError):
                if self._load(Tag(tag.name, current)).creation_time <= item.creation_time:
                    self._write_latest(tag.name, tag.version, aside)
                return
        newest = self._newest(tag.name, tag.version)
        if newest != current:
            self._write_latest(tag.name, newest, aside)

    def _forget(self, name: str, aside: Path) -> None:
        """Set `latest` after an item has gone, and remove the name with its last version."""
        if self._read_latest(name) is None:
            self._write_latest(name, self._newest(name), aside)
        with suppress(OSError):  # there are other versions
            (self.path / name).rmdir()

    def _not_found(self, tag: Tag) -> NotFoundError:
        word = self.item_type.WORD
        if versions := directories(self.path / tag.name):
            there = f"of {tag.name} it has {abbreviate(closest(tag.version or '', versions))}"
        elif names := directories(self.path):
            there = f"it has {abbreviate(closest(tag.name, names))}"
        else:
            there = "it is empty"
        return NotFoundError(f"no {word} {tag} in {self.path} ({there}); `{self.item_type.PULL} {tag}` may bring it")


class BentoStore(Store[Bento]):
    """The bentos on this disk.

    Args:
        base_path: Their directory; None for `$BENTOML_HOME/bentos`.
    """

    def __init__(self, base_path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(Bento, bentoml_home() / "bentos" if base_path is None else Path(base_path))


class ModelStore(Store[Model]):
    """The models on this disk.

    Args:
        base_path: Their directory; None for `$BENTOML_HOME/models`.
    """

    def __init__(self, base_path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(Model, bentoml_home() / "models" if base_path is None else Path(base_path))

    def total_size(self, bento: Bento) -> int:
        """Count a bento's bytes and those of its models, as BentoML does for `size_bytes`.

        A model inside the bento counts with the bento, one on Hugging Face not at all, and neither does one that is
        missing, of which a warning is logged.

        Args:
            bento: The bento.

        Returns:
            The size, in bytes.

        Raises:
            StoreError: One of the models is broken.
        """
        own = ModelStore(bento.path / "models")
        size = bento.size()
        for wanted in bento.models:
            if wanted.is_huggingface:
                continue
            with suppress(NotFoundError):
                own.get(wanted.tag)
                continue
            try:
                size += self.get(wanted.tag).size()
            except NotFoundError:
                logger.warning("%s needs the model %s, which is not in %s", bento.tag, wanted.tag, self.path)
        return size
