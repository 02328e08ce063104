"""Where the registry is and what opens it.

Weakest first: BentoCloud, the current context in `$BENTOML_HOME/.yatai.yaml`, the one that `BENTOML_CLOUD_CONTEXT`
names, `BENTO_CLOUD_API_KEY` and `BENTO_CLOUD_API_ENDPOINT`, `ASYNC_BENTO_API_TOKEN` and `ASYNC_BENTO_ENDPOINT`,
arguments.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import anyio.to_thread
from pydantic import SecretStr

from async_bento._core.urls import check_endpoint, origin
from async_bento.errors import ConfigError
from async_bento.rest.contexts import contexts_path, read_contexts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_ENDPOINT = "https://cloud.bentoml.com"
"""Where BentoML 1.4.39 goes when nothing else is said (`bentoml/_internal/cloud/config.py`)."""

_TOKEN_VARIABLES = ("ASYNC_BENTO_API_TOKEN", "BENTO_CLOUD_API_KEY")
_ENDPOINT_VARIABLES = ("ASYNC_BENTO_ENDPOINT", "BENTO_CLOUD_API_ENDPOINT")
_CONTEXT_VARIABLE = "BENTOML_CLOUD_CONTEXT"


class Credentials(NamedTuple):
    """Where the registry is and what opens it.

    Attributes:
        endpoint: The registry's URL.
        api_token: The token for it.
        source: Where the token came from, for messages.
    """

    endpoint: str
    api_token: SecretStr
    source: str


class LazyCredentials:
    """Credentials, found at once if that needs no file, and otherwise on first use."""

    def __init__(self, endpoint: str | None, api_token: str | None, context: str | None) -> None:
        self._find: Callable[[], Credentials] = partial(find_credentials, endpoint, api_token, context)
        self.found: Credentials | None = None if needs_contexts(api_token, context) else self._find()

    def get(self) -> Credentials:
        """The credentials. Blocks on first use."""
        if self.found is None:
            self.found = self._find()
        return self.found

    async def load(self) -> Credentials:
        """The credentials, found in a worker thread if that blocks."""
        return await anyio.to_thread.run_sync(self.get) if self.found is None else self.found


def needs_contexts(
    api_token: str | None = None, context: str | None = None, environ: Mapping[str, str] = os.environ
) -> bool:
    """Whether `find_credentials` has to read `.yatai.yaml`, which blocks."""
    return bool(context) or not (api_token or any(environ.get(name) for name in _TOKEN_VARIABLES))


def context_of_environment(environ: Mapping[str, str] = os.environ) -> str | None:
    """The context that `BENTOML_CLOUD_CONTEXT` names (BentoML's `--context` sets it), or None."""
    return environ.get(_CONTEXT_VARIABLE) or None


def overriding_variables(current: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The variables that take precedence over the current context."""
    overriding = [name for name in (*_TOKEN_VARIABLES, *_ENDPOINT_VARIABLES) if environ.get(name)]
    if context_of_environment(environ) not in {None, current}:
        overriding.append(_CONTEXT_VARIABLE)
    return overriding


def find_credentials(
    endpoint: str | None = None,
    api_token: str | None = None,
    context: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Credentials:
    """Find the registry and the token for it.

    The strongest source with a token wins: `api_token`, a context that was asked for by name, `ASYNC_BENTO_API_TOKEN`,
    `BENTO_CLOUD_API_KEY`, the context that `BENTOML_CLOUD_CONTEXT` names, the current context. A token that was stored
    or set together with an endpoint opens that endpoint and no other: it is never sent to an endpoint from elsewhere.

    The endpoint is the strongest of: `endpoint`, that of a context that was asked for by name, `ASYNC_BENTO_ENDPOINT`,
    `BENTO_CLOUD_API_ENDPOINT`, that of the context whose token it is, the default.

    Args:
        endpoint: The registry's URL, or None to look for it.
        api_token: The token, or None to look for it.
        context: A context of `.yatai.yaml`, or None for that of `BENTOML_CLOUD_CONTEXT`, or the current one.
        environ: Where to look for variables.

    Returns:
        The endpoint, the token and its source.

    Raises:
        ConfigError: There is no token, no such context, an endpoint is no URL, or the token found is meant for another
            endpoint.
    """
    path = contexts_path(environ)

    def from_context(name: str | None) -> Credentials | None:
        known = read_contexts(path)
        one = known.get(name, path) if name else known.find(known.current_context_name)
        return Credentials(one.endpoint, one.api_token, f"context {one.name!r} in {path}") if one else None

    def from_context_in_use() -> Credentials | None:
        name = context_of_environment(environ)
        if name is None:
            return from_context(None)
        try:
            return from_context(name)
        except ConfigError as error:
            raise ConfigError(f"{_CONTEXT_VARIABLE}={name}: {error}") from error

    def from_variables(token_variable: str, endpoint_variable: str) -> Credentials | None:
        token = environ.get(token_variable)
        return Credentials(environ.get(endpoint_variable, ""), SecretStr(token), token_variable) if token else None

    named = from_context(context) if context else None
    found = (
        (Credentials("", SecretStr(api_token), "the api_token argument") if api_token else None)
        or named
        or from_variables(_TOKEN_VARIABLES[0], _ENDPOINT_VARIABLES[0])
        or from_variables(_TOKEN_VARIABLES[1], _ENDPOINT_VARIABLES[1])
        or from_context_in_use()
    )
    if found is None:
        raise ConfigError(
            "no API token: pass api_token=, set BENTO_CLOUD_API_KEY (and BENTO_CLOUD_API_ENDPOINT, for a registry "
            f"other than {DEFAULT_ENDPOINT}), or log in with `async-bento login`, which writes {path}"
        )
    wanted = (
        endpoint
        or (named.endpoint if named else None)
        or environ.get("ASYNC_BENTO_ENDPOINT")
        or environ.get("BENTO_CLOUD_API_ENDPOINT")
        or found.endpoint
        or DEFAULT_ENDPOINT
    )
    wanted = check_endpoint(wanted)
    if found.endpoint and origin(check_endpoint(found.endpoint)) != origin(wanted):
        raise ConfigError(
            f"the token from {found.source} is for {origin(found.endpoint)} and is not sent to {origin(wanted)}: "
            "pass the api_token for that endpoint, or leave the endpoint out"
        )
    token = found.api_token.get_secret_value()
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(f"the API token from {found.source} holds characters that no token has")
    return Credentials(wanted, found.api_token, found.source)
