"""Find the registry's endpoint and the API token.

Sources, weakest first: BentoCloud's endpoint; the current context of `$BENTOML_HOME/.yatai.yaml`; the context that
`BENTOML_CLOUD_CONTEXT` names; `BENTO_CLOUD_API_KEY` and `BENTO_CLOUD_API_ENDPOINT`; `ASYNC_BENTO_API_TOKEN` and
`ASYNC_BENTO_ENDPOINT`; a context passed as an argument; arguments.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pydantic import SecretStr

from async_bento._core.urls import check_endpoint, origin
from async_bento.errors import ConfigError, prefix_errors
from async_bento.rest.contexts import contexts_path, read_contexts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_ENDPOINT = "https://cloud.bentoml.com"
"""The default endpoint of BentoML 1.4.39 (`bentoml/_internal/cloud/config.py`)."""

ARGUMENT = "the api_token argument"
"""The source of a token that a Python program passes."""

_TOKEN_VARIABLES = ("ASYNC_BENTO_API_TOKEN", "BENTO_CLOUD_API_KEY")
_ENDPOINT_VARIABLES = ("ASYNC_BENTO_ENDPOINT", "BENTO_CLOUD_API_ENDPOINT")
_CONTEXT_VARIABLE = "BENTOML_CLOUD_CONTEXT"


class Credentials(NamedTuple):
    """The endpoint of a registry, and the API token for it.

    Attributes:
        endpoint: The registry's URL, without a trailing slash.
        api_token: The API token; a `SecretStr`, which no repr shows.
        source: The source of the token, for messages: an argument, a variable or a context.
    """

    endpoint: str
    api_token: SecretStr
    source: str


class LazyCredentials:
    """Credentials, found at once if that needs no file, and otherwise on first use; `context` is the one passed."""

    def __init__(self, endpoint: str | None, api_token: str | None, context: str | None) -> None:
        self.context = context
        self._find: Callable[[], Credentials] = partial(find_credentials, endpoint, api_token, context)
        self.found: Credentials | None = None if needs_contexts(api_token, context) else self._find()

    def get(self) -> Credentials:
        """The credentials. Blocks on first use."""
        if self.found is None:
            self.found = self._find()
        return self.found

    async def load(self) -> Credentials:
        """The credentials, found in a worker thread if that blocks."""
        if self.found is not None:
            return self.found
        from async_bento._core.concurrency import run_in_new_thread

        return await run_in_new_thread(self.get)


def needs_contexts(
    api_token: str | None = None, context: str | None = None, environ: Mapping[str, str] = os.environ
) -> bool:
    """Whether `find_credentials` has to read `.yatai.yaml`, which blocks."""
    return bool(context) or not (_strip(api_token) or any(_strip(environ.get(name)) for name in _TOKEN_VARIABLES))


def context_of_environment(environ: Mapping[str, str] = os.environ) -> str | None:
    """The context that `BENTOML_CLOUD_CONTEXT` names (BentoML's `--context` sets it), or None."""
    return _strip(environ.get(_CONTEXT_VARIABLE)) or None


def endpoint_of_environment(environ: Mapping[str, str] = os.environ) -> str | None:
    """The endpoint that a variable names, or None."""
    return next(filter(None, (_strip(environ.get(name)) for name in _ENDPOINT_VARIABLES)), None)


def _strip(value: str | None) -> str:
    """Strip a token or an endpoint: a secret of Kubernetes and a file often end in a newline."""
    return (value or "").strip()


def overriding_variables(current: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The variables that take precedence over the current context."""
    overriding = [name for name in (*_TOKEN_VARIABLES, *_ENDPOINT_VARIABLES) if _strip(environ.get(name))]
    if context_of_environment(environ) not in {None, current}:
        overriding.append(_CONTEXT_VARIABLE)
    return overriding


def find_credentials(
    endpoint: str | None = None,
    api_token: str | None = None,
    context: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Credentials:
    """Find the token of the strongest source, and the endpoint; raise ConfigError if there is none. Reads files.

    A token that was stored or set together with an endpoint is sent to that endpoint only: if a stronger source names
    another endpoint, ConfigError is raised. `context` names a context of `.yatai.yaml`.
    """
    api_token = _strip(api_token)
    named = _from_context(context, environ) if context else None
    found = (
        (Credentials("", SecretStr(api_token), ARGUMENT) if api_token else None)
        or named
        or _from_variables(_TOKEN_VARIABLES[0], _ENDPOINT_VARIABLES[0], environ)
        or _from_variables(_TOKEN_VARIABLES[1], _ENDPOINT_VARIABLES[1], environ)
        or _from_selected_context(environ)
    )
    if found is None:
        raise ConfigError(
            f"no API token: no variable and no context of {contexts_path(environ)} has one. Log in with "
            "`async-bento login`, or set BENTO_CLOUD_API_KEY, and BENTO_CLOUD_API_ENDPOINT for a registry other than "
            f"{DEFAULT_ENDPOINT}."
        )
    selected = (
        _strip(endpoint)
        or (named.endpoint if named else None)
        or endpoint_of_environment(environ)
        or found.endpoint
        or DEFAULT_ENDPOINT
    )
    selected = check_endpoint(selected)
    if found.endpoint and origin(check_endpoint(found.endpoint)) != origin(selected):
        raise ConfigError(
            f"cannot send the token from {found.source} to {origin(selected)}: it is for {origin(found.endpoint)}. "
            f"Log in with `async-bento login --endpoint {selected} --name NAME`, or leave the endpoint out."
        )
    token = found.api_token.get_secret_value()
    # The rules of a header's value (RFC 9110, 5.5).
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(
            f"invalid API token from {found.source}: it has a line break or a character outside ASCII. Copy it again."
        )
    return Credentials(selected, found.api_token, found.source)


def _from_variables(token_variable: str, endpoint_variable: str, environ: Mapping[str, str]) -> Credentials | None:
    token = _strip(environ.get(token_variable))
    return Credentials(_strip(environ.get(endpoint_variable)), SecretStr(token), token_variable) if token else None


def _from_context(name: str | None, environ: Mapping[str, str]) -> Credentials | None:
    """The credentials of a context, or of the current one; None if there is no current one."""
    path = contexts_path(environ)
    known = read_contexts(path)
    found = known.get(name, path) if name else known.find(known.current_context_name)
    if found is None:
        return None
    token = SecretStr(_strip(found.api_token.get_secret_value()))
    return Credentials(_strip(found.endpoint), token, f"context {found.name!r} in {path}")


def _from_selected_context(environ: Mapping[str, str]) -> Credentials | None:
    name = context_of_environment(environ)
    with prefix_errors(f"{_CONTEXT_VARIABLE}={name}") if name else nullcontext():
        return _from_context(name, environ)
