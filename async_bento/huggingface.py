"""Models that live on the Hugging Face Hub: what a registry is told of one, and its files, in the cache of HF.

What is told, and where the files go, is what BentoML 1.4.39 has it (`HuggingFaceModel` in
`_bentoml_sdk/models/huggingface.py`). The Hub is spoken to by huggingface_hub, which is imported when the first such
model is met: it comes with `async-bento[huggingface]`. It blocks, so it runs in threads, and a thread cannot be
cancelled; it is told instead, through the progress bars that huggingface_hub updates with each chunk (see `_Watch`).

In one thing this is stricter than BentoML: the HF token goes to huggingface.co and to `$HF_ENDPOINT`, not to whatever
endpoint a bento names.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from async_bento.concurrency import finish
from async_bento.config import BENTOML_VERSION
from async_bento.errors import BentoError, ConfigError, HubError, NotFoundError, StoreError, without_queries
from async_bento.store.tag import Tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tqdm import tqdm
    from typing_extensions import Self

    from async_bento.concurrency import Threads
    from async_bento.progress import Progress
    from async_bento.store.info import BentoModelInfo
    from async_bento.store.values import JsonObject

T = TypeVar("T")

DEFAULT_ENDPOINT = "https://huggingface.co"
"""Where BentoML 1.4.39 goes when neither the model nor `$HF_ENDPOINT` says so."""

MODELS_AT_ONCE = 4
"""Models on their way from the Hub at once; with `FILES_AT_ONCE`, as many files as a client moves parts by default."""

FILES_AT_ONCE = 8
"""Files of one model on their way at once: huggingface_hub's own default."""

SECONDS_TO_STOP = 2.0
"""How long a cancelled call waits for its thread. One that hangs in a request is left behind: it writes to HF's cache
alone, which other processes may write to as well, and ends with the next chunk or with huggingface_hub's timeout."""

_USER = re.compile(r"//[^/?#\s]*@")
_TOKEN = re.compile(r"\bhf_\w{8,}")
_UNAUTHORIZED = {401, 403}


class _Metadata(BaseModel):
    """What `bento.yaml` says of such a model."""

    model_id: str
    revision: str = "main"
    endpoint: str | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub.

    Attributes:
        named: The tag its bento has for it.
        model_id: Its name there, like `google-bert/bert-base-uncased`.
        revision: A commit, a branch or a tag.
        endpoint: The Hub's URL; None for the default.
        include: Patterns of the files it is made of; None for all.
        exclude: Patterns of the files that are left out.
        is_frozen: Whether the revision is the one to register, so that the Hub need not be asked for its commit.
    """

    named: Tag
    model_id: str
    revision: str = "main"
    endpoint: str | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    is_frozen: bool = False

    @classmethod
    def of(cls, wanted: BentoModelInfo) -> Self:
        """Read what a bento says of it (BentoML's `HuggingFaceModel.from_info`).

        Args:
            wanted: The model, as `bento.yaml` has it.

        Returns:
            The model; where the bento says nothing of it, the head of `main` of what its tag is called after.

        Raises:
            StoreError: What it says does not fit.
        """
        if not wanted.metadata:
            return cls(wanted.tag, wanted.tag.name.replace("--", "/"), endpoint=os.getenv("HF_ENDPOINT") or None)
        try:
            metadata = _Metadata.model_validate(wanted.metadata)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise StoreError(
                f"the bento does not say where the model {wanted.tag} is: metadata.{field}: {first['msg']}"
            ) from error
        return cls(wanted.tag, **metadata.model_dump(), is_frozen=True)

    @property
    def hub(self) -> str:
        """The Hub's URL."""
        return self.endpoint or DEFAULT_ENDPOINT

    @property
    def url(self) -> str:
        """Where a person finds it."""
        return f"{self.hub}/{self.model_id}/tree/{self.revision}"

    @property
    def tag(self) -> Tag:
        """Its tag on a registry: the version is an MD5 of what it is (BentoML's `HuggingFaceModel.to_info`)."""
        content = self._content(self.model_id.lower())
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        version = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        return Tag(self.model_id.lower().replace("/", "--"), version)

    def manifest(self, size_bytes: int) -> JsonObject:
        """Describe it to a registry (BentoML's `HuggingFaceModel.to_create_schema`).

        Args:
            size_bytes: The size of its files.

        Returns:
            The `manifest` of a create request, ready for JSON.
        """
        return {
            "module": "",
            "api_version": "v1",
            "bentoml_version": BENTOML_VERSION,
            "size_bytes": size_bytes,
            "metadata": {"registry": "huggingface", **self._content(self.model_id), "url": self.url},
            "context": {
                "framework_name": "huggingface",
                "framework_versions": {},
                "bentoml_version": BENTOML_VERSION,
                "python_version": platform.python_version(),
            },
            "options": {},
        }

    def _content(self, model_id: str) -> JsonObject:
        return {
            "model_id": model_id,
            "revision": self.revision,
            "endpoint": self.hub,
            "include": None if self.include is None else [*self.include],
            "exclude": None if self.exclude is None else [*self.exclude],
        }


async def freeze(model: HubModel, threads: Threads) -> HubModel:
    """Let the revision be a commit, as the Hub has it now.

    Args:
        model: The model.
        threads: Where the Hub is asked, if it must be.

    Returns:
        The model; itself where its bento says which commit it is.

    Raises:
        ConfigError: huggingface_hub is not installed.
        NotFoundError: The Hub has no such model.
        HubError: The Hub was not reached, or refused.
    """
    if model.is_frozen:
        return model

    def ask() -> str:
        from huggingface_hub import HfApi

        info = HfApi(endpoint=model.endpoint and model.endpoint.rstrip("/"), token=_token_for(model)).model_info(
            model.model_id, revision=model.revision
        )
        return info.sha or model.revision

    return replace(model, revision=await _call(model, ask, threads), is_frozen=True)


async def measure(model: HubModel, threads: Threads) -> int:
    """Ask the Hub for the size of a model's files.

    Args:
        model: The model.
        threads: Where the Hub is asked.

    Returns:
        The size of those files that its patterns let through, in bytes.

    Raises:
        ConfigError: huggingface_hub is not installed.
        NotFoundError: The Hub has no such model.
        HubError: The Hub was not reached, or refused.
    """

    def ask() -> int:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

        info = HfApi(endpoint=model.endpoint and model.endpoint.rstrip("/"), token=_token_for(model)).model_info(
            model.model_id, revision=model.revision, files_metadata=True
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        return sum(
            sizes[name]
            for name in filter_repo_objects(sizes, allow_patterns=model.include, ignore_patterns=model.exclude)
        )

    return await _call(model, ask, threads)


async def download(model: HubModel, threads: Threads, progress: Progress) -> str:
    """Bring a model's files into `$BENTOML_HF_CACHE_DIR`, or else HF's own cache. What is there is not fetched again.

    Args:
        model: The model.
        threads: Where it is done.
        progress: Who is told.

    Returns:
        The directory of its snapshot.

    Raises:
        ConfigError: huggingface_hub is not installed.
        NotFoundError: The Hub has no such model.
        StoreError: The cache cannot be written.
        HubError: The Hub was not reached, or refused.
    """
    watch = _Watch(progress, asyncio.get_running_loop())

    def fetch() -> str:
        from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

        return snapshot_download(
            model.model_id,
            revision=model.revision,
            endpoint=model.endpoint and model.endpoint.rstrip("/"),
            cache_dir=os.getenv("BENTOML_HF_CACHE_DIR") or None,
            allow_patterns=model.include,
            ignore_patterns=model.exclude,
            max_workers=FILES_AT_ONCE,
            token=_token_for(model),
            tqdm_class=_bar_class(watch),
        )

    return await _call(model, fetch, threads, watch.stopped)


def _token_for(model: HubModel) -> bool | None:
    """None for whatever token huggingface_hub finds, False for none: a bento may name any endpoint."""
    own = {DEFAULT_ENDPOINT, os.getenv("HF_ENDPOINT") or DEFAULT_ENDPOINT}
    return None if model.hub.rstrip("/") in {endpoint.rstrip("/") for endpoint in own} else False


async def _call(model: HubModel, function: Callable[[], T], threads: Threads, stopped: Event | None = None) -> T:
    """Call what speaks to the Hub. When cancelled, tell it, and wait a moment for its end."""
    work = threads.executor.submit(partial(_translated, model, function))
    future = asyncio.wrap_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stopped is not None:
            stopped.set()
        work.cancel()  # where it has not begun
        future.add_done_callback(_forget)
        with suppress(asyncio.CancelledError):
            await finish(asyncio.wait([future], timeout=SECONDS_TO_STOP))
        raise


def _forget(future: asyncio.Future[Any]) -> None:
    """Retrieve the outcome: the cancellation is what the caller hears of."""
    if not future.cancelled():
        future.exception()


def _translated(model: HubModel, function: Callable[[], T]) -> T:
    """Let what huggingface_hub, and whatever HTTP client it has these days, may raise become ours."""
    try:
        import_module("huggingface_hub.errors")
    except ImportError as error:
        raise ConfigError(
            f"the model {model.named} lives on the Hugging Face Hub, which needs huggingface_hub: run `pip install "
            '"async-bento[huggingface]"`'
        ) from error
    try:
        return function()
    except Exception as error:
        raise _explained(model, error) from error


def _explained(model: HubModel, error: Exception) -> BentoError:
    from huggingface_hub import errors

    name = f"the model {model.model_id}"
    hub = _shown(model.hub)
    causes = [*_causes(error)]
    for cause in causes:
        if isinstance(cause, errors.GatedRepoError):
            return HubError(
                f"{name} on {hub} is gated: ask for access at {hub}/{model.model_id}, then {_authenticate(model)}",
                model_id=model.model_id,
                status=cause.response.status_code,
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return NotFoundError(
                f"{name} on {hub} has no revision {model.revision}; it may have been removed: "
                "build the bento anew with one that is there"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return NotFoundError(
                f"no {name.removeprefix('the ')} on {hub}; if it is private or gated, {_authenticate(model)}"
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return HubError(
                f"{name} is not, or not as a whole, in the cache of Hugging Face, and HF_HUB_OFFLINE forbids to ask "
                f"{hub} for it: unset HF_HUB_OFFLINE, or set HF_HOME or BENTOML_HF_CACHE_DIR to where it is",
                model_id=model.model_id,
            )
    for cause in causes:
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            hint = _authenticate(model) if status in _UNAUTHORIZED else "try again later"
            return HubError(
                f"{hub} answered {status} for {name}: {_first_line(cause)}; {hint}",
                model_id=model.model_id,
                status=status,
            )
    root = causes[-1]
    if isinstance(root, OSError) and root.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM}:
        return StoreError(f"cannot write {name} into the cache of Hugging Face: {root.strerror}: {root.filename}")
    return HubError(
        f"{name} could not be had from {hub}: {type(root).__name__}: {_first_line(root)}; "
        "is the address right, and the network up?",
        model_id=model.model_id,
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what huggingface_hub says it came from; what its HTTP client stands on is of no interest."""
    while error is not None:
        yield error
        error = error.__cause__ if type(error).__module__.startswith("huggingface_hub") else None


def _authenticate(model: HubModel) -> str:
    hint = "set HF_TOKEN to a token that may read it, or run `hf auth login`"
    if _token_for(model) is None:
        return hint
    return f"{hint}; for the token to be sent there, set HF_ENDPOINT={_shown(model.hub)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return _shown(lines[0]) if lines else type(error).__name__


def _shown(text: str) -> str:
    """A text without what nobody else may see: tokens, queries and passwords of URLs."""
    for secret in (os.getenv("HF_TOKEN"), os.getenv("HUGGING_FACE_HUB_TOKEN")):
        if secret and secret.strip():
            text = text.replace(secret.strip(), "…")
    return _TOKEN.sub("hf_…", _USER.sub("//", without_queries(text)))


class StoppedError(Exception):
    """Raised in a thread of huggingface_hub whose download is to end."""


class _Watch:
    """Looks at the bars that huggingface_hub would draw, from its threads, and tells of them on the event loop.

    They are also how a download hears that it is cancelled: a bar that is touched then raises, and a bar is touched
    for each file that begins and each chunk (10 MiB, or what Xet reports) that has come.

    Args:
        progress: Who is told.
        loop: Where.
    """

    def __init__(self, progress: Progress, loop: asyncio.AbstractEventLoop) -> None:
        self.stopped = Event()
        self._progress = progress
        self._loop = loop
        self._lock = Lock()
        self._counts: tqdm[Any] | None = None

    def add(self, bar: tqdm[Any]) -> None:
        """Take note of a bar that counts bytes.

        Args:
            bar: The bar. Recent releases make one for what comes over the network, then one for what is on the disk,
                which has the exact total; older ones make one.
        """
        self._counts = bar

    def look(self, bar: tqdm[Any], moved: float = 0) -> None:
        """Tell how far the bars are.

        Args:
            bar: The one that has changed.
            moved: By how much.

        Raises:
            StoppedError: The download is to end.
        """
        if self.stopped.is_set():
            raise StoppedError
        with self._lock:
            bar.n += moved
            if bar is self._counts and bar.total:
                self._loop.call_soon_threadsafe(self._tell, int(bar.n), int(bar.total))

    def _tell(self, done: int, total: int) -> None:
        if self.stopped.is_set():
            return
        if self._progress.phase != "transferring" or total != self._progress.bytes_total:
            self._progress.enter("transferring", bytes_total=total)
        if done != self._progress.bytes_done:
            self._progress.advance(done - self._progress.bytes_done)


def _bar_class(watch: _Watch) -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        """A bar that draws nothing."""

        monitor_interval = 0  # no thread to redraw it

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # pyright: ignore[reportUnknownMemberType]
            if options.get("unit") == "B":
                watch.add(self)

        def update(self, n: float | None = 1) -> bool | None:
            watch.look(self, n or 0)
            return None

        def refresh(self, *_: Any, **__: Any) -> None:
            watch.look(self)

    return Bar
