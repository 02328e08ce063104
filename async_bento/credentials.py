"""Where the registry is and what opens it.

Weakest first: BentoCloud, the current context in `$BENTOML_HOME/.yatai.yaml`, the one that `BENTOML_CLOUD_CONTEXT`
names, `BENTO_CLOUD_API_KEY` and `BENTO_CLOUD_API_ENDPOINT`, `ASYNC_BENTO_API_TOKEN` and `ASYNC_BENTO_ENDPOINT`,
arguments.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from async_bento.config import bentoml_home
from async_bento.errors import ConfigError, without_queries

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEFAULT_ENDPOINT = "https://cloud.bentoml.com"
"""Where BentoML 1.4.39 goes when nothing else is said (`bentoml/_internal/cloud/config.py`)."""

DEFAULT_CONTEXT = "default"
"""The context BentoML 1.4.39 uses when `.yatai.yaml` names no current one."""

_TOKEN_VARIABLES = ("ASYNC_BENTO_API_TOKEN", "BENTO_CLOUD_API_KEY")
_ENDPOINT_VARIABLES = ("ASYNC_BENTO_ENDPOINT", "BENTO_CLOUD_API_ENDPOINT")
_CONTEXT_VARIABLE = "BENTOML_CLOUD_CONTEXT"

_PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without spaces and backslashes
_USER = re.compile(r"//[^/?#]*@")


class Context(BaseModel):
    """One entry of `.yatai.yaml`.

    Attributes:
        name: The context's name.
        endpoint: The registry's URL.
        api_token: The token for it.
        email: Whose token it is, where BentoML has asked.
    """

    name: str
    endpoint: str
    api_token: SecretStr
    email: str | None = None


class Contexts(BaseModel):
    """`.yatai.yaml`, as `async-bento login` and `bentoml cloud login` write it.

    Attributes:
        contexts: The known registries.
        current_context_name: The one used when none is named.
    """

    contexts: list[Context] = []
    current_context_name: str = DEFAULT_CONTEXT

    def find(self, name: str) -> Context | None:
        """Find a context.

        Args:
            name: Its name.

        Returns:
            The first of this name, as BentoML takes it, or None.
        """
        return next((context for context in self.contexts if context.name == name), None)

    def get(self, name: str, path: Path) -> Context:
        """Get a context that has to be there.

        Args:
            name: Its name.
            path: The file, for the message.

        Returns:
            The context.

        Raises:
            ConfigError: There is none of this name; the message lists those there are.
        """
        if found := self.find(name):
            return found
        names = ", ".join(sorted(entry.name for entry in self.contexts)) or "none"
        raise ConfigError(f"no context {name!r} in {path} (it has: {names})")


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


def contexts_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The file of the contexts, which BentoML reads and writes too.

    Args:
        environ: Where to look for `BENTOML_HOME`.

    Returns:
        `$BENTOML_HOME/.yatai.yaml`.
    """
    return bentoml_home(environ) / ".yatai.yaml"


def read_contexts(path: Path) -> Contexts:
    """Read `.yatai.yaml`.

    Args:
        path: The file.

    Returns:
        What it says; no contexts where there is no file or nothing in it.

    Raises:
        ConfigError: The file is unreadable, is not YAML, or lacks a field; the message says which.
    """
    return read_document(path)[0]


def read_document(path: Path) -> tuple[Contexts, dict[str, object]]:
    """Read `.yatai.yaml`, with whatever else others wrote in it.

    Args:
        path: The file.

    Returns:
        What `read_contexts` returns, and the whole document.

    Raises:
        ConfigError: As `read_contexts` does.
    """
    try:
        content: object = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        content = None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError):  # PyYAML lets through what a bad date or number raises
        # No cause: what YAML says of a file quotes the file, and this one holds tokens.
        raise ConfigError(f"{path} is not valid YAML; mend it, or delete it and log in again") from None
    try:
        contexts = Contexts.model_validate(content or {})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {place}: {first['msg']}" if place else f"{path} holds no contexts") from None
    return contexts, cast("dict[str, object]", content or {})  # nothing but a mapping passes for Contexts


def needs_contexts(
    api_token: str | None = None, context: str | None = None, environ: Mapping[str, str] = os.environ
) -> bool:
    """Whether `find_credentials` must read `.yatai.yaml`, which blocks.

    Args:
        api_token: The token, or None.
        context: A context, or None.
        environ: Where to look for variables.

    Returns:
        True where a context is asked for, or where neither the argument nor a variable has a token.
    """
    return bool(context) or not (api_token or any(environ.get(name) for name in _TOKEN_VARIABLES))


def context_of(environ: Mapping[str, str] = os.environ) -> str | None:
    """Name the context that the environment asks for, in place of the current one (BentoML's `--context` sets it).

    Args:
        environ: Where to look for `BENTOML_CLOUD_CONTEXT`.

    Returns:
        Its name, or None.
    """
    return environ.get(_CONTEXT_VARIABLE) or None


def shadowing(current: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Name the variables that are stronger than the current context, for who has just stored or chosen one.

    Args:
        current: The current context.
        environ: Where to look for variables.

    Returns:
        Those that are set; a variable that names the same context is not in its way.
    """
    stronger = [name for name in (*_TOKEN_VARIABLES, *_ENDPOINT_VARIABLES) if environ.get(name)]
    if context_of(environ) not in {None, current}:
        stronger.append(_CONTEXT_VARIABLE)
    return stronger


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
        name = context_of(environ)
        try:
            return from_context(name)
        except ConfigError as error:
            if name:
                error.args = (f"{_CONTEXT_VARIABLE}={name}: {error}",)
            raise

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


def check_endpoint(endpoint: str) -> str:
    """Check that an endpoint is the URL of a server.

    Args:
        endpoint: Like `https://cloud.bentoml.com` or `http://127.0.0.1:3000`.

    Returns:
        The endpoint without a slash at its end.

    Raises:
        ConfigError: It is no http or https URL, or holds a user name, a query or a fragment.
    """
    shown = _USER.sub("//", without_queries(endpoint))
    wrong = ConfigError(f"{shown!r} is no endpoint: it must look like https://registry.example.com")
    if not _PLAIN.fullmatch(endpoint):  # urlsplit drops line breaks, and forgives much that aiohttp does not
        raise wrong
    try:
        parts = urlsplit(endpoint)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:  # a port that is no number, a bracket that is not closed, a name with an empty label
        raise wrong from None  # it may quote a password
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise wrong
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(f"the endpoint on {parts.hostname} must have no user name, query or fragment")
    return endpoint.rstrip("/")


def origin(url: str) -> str:
    """The scheme, host and port of a URL: what a token is bound to (RFC 6454).

    Args:
        url: An absolute URL.

    Returns:
        Like `https://cloud.bentoml.com`; the default port is left out.
    """
    parts = urlsplit(url)
    port = {"http": 80, "https": 443}.get(parts.scheme) if parts.port is None else parts.port
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if port == default else f":{port}")
