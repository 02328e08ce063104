"""Make an installed BentoML push and pull with async-bento, without changes to the calling code.

    import async_bento.integrations.bentoml

    async_bento.integrations.bentoml.accelerate()
    bentoml.push("iris_classifier:v1")
    async_bento.integrations.bentoml.restore()

`accelerate` replaces the transfers of `bentoml.push`, `bentoml.pull`, `bentoml.models.push`, `bentoml.models.pull`, of
BentoML's `BentoAPI` and `ModelAPI`, and of BentoML's commands in the same process. In a shell, run `python -m
async_bento.integrations.bentoml push iris_classifier:v1` instead of `bentoml push iris_classifier:v1`. To disable the
replacement, set `ASYNC_BENTO_ACCELERATE=0`.

Parameters and results are BentoML's. Errors are BentoML's, too: `bentoml.exceptions.NotFound` or another
`BentoMLException`, with the error of async-bento as its cause. A failed upload raises such an error, where BentoML
prints a line and returns. Deployments, lists, and models on the Hugging Face Hub that are pushed without a bento are
left to BentoML. A pull of a model on the Hub returns None, as BentoML's does, and downloads the model to the cache of
Hugging Face.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from functools import wraps
from importlib import import_module, metadata
from inspect import signature
from typing import TYPE_CHECKING, Any

from async_bento._core.text import human_size
from async_bento.errors import BentoError, NotFoundError
from async_bento.progress.events import is_watched

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from async_bento._core.tag import TaggedItem
    from async_bento.api.push import PushResult
    from async_bento.api.sync_api import BentoAPI

__all__ = ["accelerate", "restore"]

_OFF = "ASYNC_BENTO_ACCELERATE"
_API_HEADER = "X-YATAI-API-TOKEN"

_originals: dict[tuple[Any, str], Callable[..., Any]] = {}


def accelerate() -> bool:
    """Make BentoML push and pull with async-bento until `restore` is called.

    Calling it again has no effect. Nothing is changed if `ASYNC_BENTO_ACCELERATE` is `0`. If BentoML is not installed,
    or what is replaced has another signature in its release, nothing is changed and a `UserWarning` states the reason.

    Returns:
        True if BentoML now uses async-bento, False if nothing was changed.
    """
    if os.environ.get(_OFF) == "0":
        return False
    if _originals:
        return True
    try:
        version = metadata.version("bentoml")
    except metadata.PackageNotFoundError:
        warnings.warn("cannot accelerate bentoml: it is not installed. Install bentoml first.", stacklevel=2)
        return False
    try:
        # A list: all of them are checked before the first is replaced.
        methods = [*_find_methods()]
    except _OtherReleaseError as error:
        remedy = "Use AsyncBentoAPI or BentoAPI instead."
        warnings.warn(f"cannot accelerate bentoml {version}: {error}. {remedy}", stacklevel=2)
        return False
    for owner, replacement, name in methods:
        _replace(owner, name, replacement)
    return True


def restore() -> None:
    """Undo `accelerate`: BentoML pushes and pulls by itself again. Has no effect if BentoML is not accelerated."""
    for (owner, name), original in _originals.items():
        setattr(owner, name, original)
    _originals.clear()


class _OtherReleaseError(Exception):
    """The installed BentoML differs in what is replaced or used."""


def _find_methods() -> Iterator[tuple[Any, Callable[..., Any], str]]:
    """Find the methods to replace, after a check of all that the replacements use of BentoML."""
    try:
        cloud = import_module("bentoml._internal.cloud")
        for owner_name, replacements in _REPLACEMENTS.items():
            if (owner := getattr(cloud, owner_name, None)) is None:
                raise _OtherReleaseError(f"it has no {owner_name} in bentoml._internal.cloud")
            for name, replacement in replacements.items():
                # Without the first parameter: BentoML's `self` is `bentoml_api` here.
                found, expected = (list(signature(each).parameters)[1:] for each in (getattr(owner, name), replacement))
                if found != expected:
                    raise _OtherReleaseError(
                        f"{owner_name}.{name} takes {', '.join(found)} instead of {', '.join(expected)}"
                    )
                yield owner, replacement, name
        for store in (_container().bento_store.get(), _container().model_store.get()):
            _path_of(store)
        # Sends no request: checks that the endpoint and the token are where `_open_api` reads them.
        client = cloud.RestApiClient("http://127.0.0.1", "token")
        with client.session as session:
            if (str(client.endpoint), session.headers[_API_HEADER]) != ("http://127.0.0.1", "token"):
                raise _OtherReleaseError("its client has the endpoint or the token elsewhere")
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        raise _OtherReleaseError(str(error)) from error


def _replace(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    original = _originals[owner, name] = getattr(owner, name)

    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return replacement(self, *args, **kwargs)

    setattr(owner, name, method)


def _push_bento(
    bentoml_api: Any, bento: TaggedItem, *, force: bool = False, bare: bool = False, threads: int = 10
) -> None:
    with _open_api(bentoml_api) as api:
        _print_pushed(bentoml_api, "bento", api.push(bento, force=force, bare=bare, threads=threads))


def _pull_bento(
    bentoml_api: Any,
    tag: Any,
    *,
    force: bool = False,
    with_models: bool = False,
    bento_store: Any = None,
) -> Any:
    store = bento_store or _container().bento_store.get()
    with _open_api(bentoml_api, bento_store=store) as api:
        bento = api.pull(str(tag), force=force, with_models=with_models)
    return store.get(str(bento.tag))


def _push_model(bentoml_api: Any, model: Any, *, force: bool = False, threads: int = 10) -> None:
    stored = (import_module("bentoml").Model, import_module("_bentoml_sdk.models").BentoModel)
    if not isinstance(model, stored):
        owner = next(each for each in type(bentoml_api).__mro__ if (each, "push") in _originals)
        _originals[owner, "push"](bentoml_api, model, force=force, threads=threads)
        return
    with _open_api(bentoml_api) as api:
        _print_pushed(bentoml_api, "model", api.models.push(str(model.tag), force=force, threads=threads))


def _pull_model(
    bentoml_api: Any,
    tag: Any,
    *,
    force: bool = False,
    model_store: Any = None,
    query: str | None = None,
) -> Any:
    from async_bento.store.items import Model

    store = model_store or _container().model_store.get()
    with _open_api(bentoml_api, model_store=store) as api:
        model = api.models.pull(str(tag), force=force, query=query)
    # BentoML returns None for a model on the Hugging Face Hub.
    return store.get(str(model.tag)) if isinstance(model, Model) else None


@contextmanager
def _open_api(bentoml_api: Any, *, bento_store: Any = None, model_store: Any = None) -> Generator[BentoAPI]:
    """Open a BentoAPI with the registry, token and stores of BentoML's; raise its errors as BentoML's."""
    from async_bento.api.sync_api import BentoAPI
    from async_bento.store.store import BentoStore, ModelStore

    container, exceptions = _container(), import_module("bentoml.exceptions")
    client = bentoml_api._client
    try:
        with BentoAPI(
            endpoint=str(client.endpoint),
            api_token=str(client.session.headers[_API_HEADER]),
            bento_store=BentoStore(_path_of(bento_store or container.bento_store.get())),
            model_store=ModelStore(_path_of(model_store or container.model_store.get())),
        ) as api:
            yield api
    except NotFoundError as error:
        raise exceptions.NotFound(str(error)) from error
    except BentoError as error:
        raise exceptions.BentoMLException(str(error)) from error


def _container() -> Any:
    return import_module("bentoml._internal.configuration.containers").BentoMLContainer


def _path_of(store: Any) -> str:
    """The directory of a store of BentoML's, which has a path since 1.4.20 and a file system of PyFilesystem before."""
    return str(store._path if hasattr(store, "_path") else store._fs.getsyspath("/"))


def _print_pushed(bentoml_api: Any, word: str, result: PushResult) -> None:
    if is_watched():
        return  # the progress bars have shown it
    outcome = "already pushed" if result.skipped else f"pushed {human_size(result.bytes_sent)}"
    bentoml_api.spinner.console.print(f"{word} {result.tag}: {outcome}", markup=False, highlight=False)


_REPLACEMENTS: dict[str, dict[str, Callable[..., Any]]] = {
    "BentoAPI": {"push": _push_bento, "pull": _pull_bento},
    "ModelAPI": {"push": _push_model, "pull": _pull_model},
}

if __name__ == "__main__":
    # Run as a program, this module is `__main__`; the state has to be in the module that other code imports.
    import_module("async_bento.integrations.bentoml").accelerate()
    import_module("bentoml_cli.cli").cli(prog_name="bentoml")
