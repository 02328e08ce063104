"""Let an installed BentoML push and pull by way of async-bento, with none of its calls changed.

    import async_bento.integrations.bentoml

    async_bento.integrations.bentoml.accelerate()
    bentoml.push("iris_classifier:v1")
    async_bento.integrations.bentoml.restore()

`bentoml.push`, `bentoml.pull`, `bentoml.models.push`, `bentoml.models.pull` and BentoML's own `BentoAPI` and `ModelAPI`
then send and fetch as async-bento does; so do the commands of the same process. In the shell, `python -m
async_bento.integrations.bentoml push iris_classifier:v1` is `bentoml push iris_classifier:v1`, accelerated. With
`ASYNC_BENTO_ACCELERATE=0` in the environment all of it stays as it was.

What they take and return is BentoML's, and so is what they raise: a `bentoml.exceptions.NotFound` or another
`BentoMLException`, with the error of async-bento for its cause. It is raised for an upload that fails as well, of which
BentoML by itself prints a line and returns. Models on the Hugging Face Hub that are pushed on their own, deployments
and lists are left to BentoML.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from functools import wraps
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from async_bento._core.text import human_size
from async_bento.errors import BentoError, NotFoundError
from async_bento.progress.events import is_watched

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from async_bento.api.push import PushResult
    from async_bento.api.sync_api import BentoAPI

VERSIONS = ("1.4.39",)
"""The releases of BentoML that this has been tried with. It reaches into their insides, which may differ in others."""

_OFF = "ASYNC_BENTO_ACCELERATE"

_originals: dict[tuple[Any, str], Callable[..., Any]] = {}


def accelerate() -> bool:
    """Let BentoML push and pull by way of async-bento, until `restore`. A second call changes nothing.

    Returns:
        Whether it does now. False, with a warning and nothing changed, where BentoML is not installed or of a release
        that is not in `VERSIONS`; False where `ASYNC_BENTO_ACCELERATE` is `0`.
    """
    if os.environ.get(_OFF) == "0":
        return False
    try:
        version = metadata.version("bentoml")
    except metadata.PackageNotFoundError:
        warnings.warn("bentoml is not installed, so there is nothing to accelerate", stacklevel=2)
        return False
    if version not in VERSIONS:
        tried = ", ".join(VERSIONS)
        warnings.warn(
            f"bentoml {version} is left as it is: async-bento can accelerate {tried}; "
            "use AsyncBentoAPI or BentoAPI instead",
            stacklevel=2,
        )
        return False
    if not _originals:
        bentos, models = (import_module(f"bentoml._internal.cloud.{name}") for name in ("bento", "model"))
        _replace(bentos.BentoAPI, "push", _push_bento)
        _replace(bentos.BentoAPI, "pull", _pull_bento)
        _replace(models.ModelAPI, "push", _push_model)
        _replace(models.ModelAPI, "pull", _pull_model)
    return True


def restore() -> None:
    """Let BentoML push and pull by itself again."""
    for (owner, name), original in _originals.items():
        setattr(owner, name, original)
    _originals.clear()


def _replace(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    original = _originals[owner, name] = getattr(owner, name)

    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    setattr(owner, name, method)


def _push_bento(theirs: Any, bento: Any, *, force: bool = False, bare: bool = False, threads: int = 10) -> None:
    with _api(theirs) as api:
        _say_pushed(theirs, "bento", api.push(bento, force=force, bare=bare, threads=threads))


def _pull_bento(
    theirs: Any,
    tag: Any,
    *,
    force: bool = False,
    with_models: bool = False,
    bento_store: Any = None,
) -> Any:
    store = bento_store or _container().bento_store.get()
    with _api(theirs, bento_store=store) as api:
        bento = api.pull(str(tag), force=force, with_models=with_models)
    return store.get(str(bento.tag))


def _push_model(theirs: Any, model: Any, *, force: bool = False, threads: int = 10) -> None:
    stored = (import_module("bentoml").Model, import_module("_bentoml_sdk.models").BentoModel)
    if not isinstance(model, stored):
        _originals[type(theirs), "push"](theirs, model, force=force, threads=threads)
        return
    with _api(theirs) as api:
        _say_pushed(theirs, "model", api.models.push(str(model.tag), force=force, threads=threads))


def _pull_model(
    theirs: Any,
    tag: Any,
    *,
    force: bool = False,
    model_store: Any = None,
    query: str | None = None,
) -> Any:
    store = model_store or _container().model_store.get()
    with _api(theirs, model_store=store) as api:
        model = api.models.pull(str(tag), force=force, query=query)
    return None if model is None else store.get(str(model.tag))


@contextmanager
def _api(theirs: Any, *, bento_store: Any = None, model_store: Any = None) -> Generator[BentoAPI]:
    """An API of ours with the registry, the token and the stores of one of theirs; its errors are theirs, too."""
    from async_bento.api.sync_api import BentoAPI
    from async_bento.store.store import BentoStore, ModelStore

    container, exceptions = _container(), import_module("bentoml.exceptions")
    client = theirs._client
    try:
        with BentoAPI(
            endpoint=str(client.endpoint),
            api_token=str(client.session.headers["X-YATAI-API-TOKEN"]),
            bento_store=BentoStore((bento_store or container.bento_store.get())._path),
            model_store=ModelStore((model_store or container.model_store.get())._path),
        ) as api:
            yield api
    except NotFoundError as error:
        raise exceptions.NotFound(str(error)) from error
    except BentoError as error:
        raise exceptions.BentoMLException(str(error)) from error


def _container() -> Any:
    return import_module("bentoml._internal.configuration.containers").BentoMLContainer


def _say_pushed(theirs: Any, word: str, result: PushResult) -> None:
    if is_watched():
        return  # the bars have said it
    what = "the registry has it already" if result.skipped else f"{human_size(result.bytes_sent)} sent"
    theirs.spinner.console.print(f"{word} {result.tag}: {what}", markup=False, highlight=False)


if __name__ == "__main__":
    # As a program this module has another name, and what it replaced should be where others look for it.
    import_module("async_bento.integrations.bentoml").accelerate()
    import_module("bentoml_cli.cli").cli(prog_name="bentoml")
