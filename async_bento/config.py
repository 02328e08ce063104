"""Settings, each with its default and the reason for it, and where each comes from.

Weakest first: the defaults below, the current context in `$BENTOML_HOME/.yatai.yaml`, the one that
`BENTOML_CLOUD_CONTEXT` names, `BENTO_CLOUD_API_KEY` and `BENTO_CLOUD_API_ENDPOINT`, the `ASYNC_BENTO_*` variables,
arguments.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from async_bento.errors import ConfigError, without_queries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

DEFAULT_ENDPOINT = "https://cloud.bentoml.com"
"""Where BentoML 1.4.39 goes when nothing else is said (`bentoml/_internal/cloud/config.py`)."""

DEFAULT_CONTEXT = "default"
"""The context BentoML 1.4.39 uses when `.yatai.yaml` names no current one."""

BENTOML_VERSION = "1.4.39"
"""The BentoML whose protocol is spoken; sent as `X-Bentoml-Version`, which Yatai parses."""

_TOKEN_VARIABLES = ("ASYNC_BENTO_API_TOKEN", "BENTO_CLOUD_API_KEY")
_ENDPOINT_VARIABLES = ("ASYNC_BENTO_ENDPOINT", "BENTO_CLOUD_API_ENDPOINT")
_CONTEXT_VARIABLE = "BENTOML_CLOUD_CONTEXT"

_PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without spaces and backslashes
_USER = re.compile(r"//[^/?#]*@")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # no clock takes an infinite wait


class Timeouts(_Frozen):
    """How long to wait, in seconds. No transfer has a total: a 40 GB bento over a poor link takes what it takes.

    Attributes:
        connect: For a connection, its TLS handshake included. Ten seconds pass three SYN retransmissions.
        stall: For the next byte of a transfer, either way. A minute outlives a failover of an object storage.
        api: For one answer of the registry. BentoML's own client waits 60.
        complete: For the answer to the end of a multipart upload. S3 puts the parts together meanwhile, which may take
            minutes, and the parts are there already.
    """

    connect: float = Field(default=10.0, gt=0)
    stall: float = Field(default=60.0, gt=0)
    api: float = Field(default=60.0, gt=0)
    complete: float = Field(default=600.0, gt=0)


class RetryPolicy(_Frozen):
    """How often a transient fault is tried again, and how long to wait before it, in seconds.

    Attributes:
        attempts: Tries in all; of a part or a range, tries since another of the same transfer came through. Eight, with
            the waits below, outlast twenty seconds of outage on average.
        wait_initial: The longest wait before the second try; it doubles with each. How long the wait is then, is left
            to chance, so that many clients do not come back at once.
        wait_max: The longest wait between two tries.
        retry_after_cap: The longest `Retry-After` that is obeyed; a longer one ends the call.
    """

    attempts: int = Field(default=8, ge=1)
    wait_initial: float = Field(default=0.5, ge=0)
    wait_max: float = Field(default=15.0, ge=0)
    retry_after_cap: float = Field(default=120.0, ge=0)


class Transfer(_Frozen):
    """How bytes are moved. Sizes in bytes.

    Memory of a push is at most `min(threads × items, concurrency) × 2 × io_chunk`, whatever the size of a part: a part
    is never held, only the hop that is on its way and the one that is read after it. Memory of a pull is at most
    `window + window / range_size × 2 MiB`: the ranges that are on their way or wait for their turn, and what their
    connections hold. Both count per client, all its bentos and models together, on top of what the interpreter and its
    allocator take.

    Attributes:
        part_size: The size of a part of a multipart upload; more where the item would need over 10,000 parts of it,
            never under S3's 5 MiB. With ten parts in flight over a link of 40 ms and 20 MB/s a connection, 128 to
            400 MiB take 0.67 to 0.81 of the time that parts of 32 MiB take, since the last parts leave fewer
            connections idle; 8 MiB gain little more and ask for twice as many URLs (benchmarks/part_size.py).
        concurrency: Parts and ranges in flight for the whole client, all items together. `threads` bounds them for
            one item.
        io_chunk: What is read or written in one hop to a worker thread. 64 KiB costs about four times the CPU
            of 1 MiB; 4 MiB gains nothing and blocks the loop longer over TLS.
        window: The bytes of ranges that may be on their way or wait for their turn during a pull.
        range_size: What one ranged GET of a pull asks for; never more than the window.
        verify: Compare the MD5 of each part with its ETag, where the ETag looks like an MD5.
        resume: Go on with an interrupted push or pull where it stopped, in another process too.
    """

    part_size: int = Field(default=16 * MiB, ge=5 * MiB, le=5 * GiB)
    concurrency: int = Field(default=32, ge=1)
    io_chunk: int = Field(default=MiB, ge=4 * KiB)
    window: int = Field(default=64 * MiB, ge=MiB)
    range_size: int = Field(default=8 * MiB, ge=64 * KiB)
    verify: bool = True
    resume: bool = True

    @property
    def range_in_window(self) -> int:
        """The size of a range, as far as the window has room for it."""
        return min(self.range_size, self.window)


class Limits(_Frozen):
    """What a tar may hold; one that holds more is refused while it arrives. Sizes in bytes.

    Memory of unpacking a tar is at most `2 × names + 32 × header + 2 MiB`, and 128 MiB for the dictionary of an xz. The
    tar itself, unpacked by gzip and its like, has at most `content + members × (2 × header + 1 KiB) + 1 MiB`.

    Attributes:
        members: The most members. Even one without content costs an inode and a tenth of a millisecond. A bento with an
            environment in it has a hundred thousand.
        depth: The most names in a path, and in a link's target. Python before 3.13 removes a directory with one of its
            1,000 frames per level; what people build has tens.
        path: The longest path of a member, and the longest target of a link: Linux's PATH_MAX.
        header: The most that extended headers say of one member. The names and times in them take hundreds; 64 KiB is
            the longest extended attribute that Linux keeps, should there be one.
        names: The most memory for the names of directories and links, which are known until the end. It is enough for
            400,000 of them, those included that are only named on the way to a member.
        size: The most content, whatever was announced; None for what the disk holds.
        excess: How many times the size that the registry announces the content may have. A bento is announced with its
            models, which are not in its tar, so honest tars stay below 1; but a version that is pushed again may keep
            the record of its first push.
        slack: The content that is allowed on top of that, since a wrong record is no reason to refuse what fills no
            disk. No size is announced by some old records; their tars have `size` alone.
    """

    members: int = Field(default=1_000_000, ge=1)
    depth: int = Field(default=128, ge=1, le=500)
    path: int = Field(default=4096, ge=1)
    header: int = Field(default=64 * KiB, ge=KiB)
    names: int = Field(default=256 * MiB, ge=0)
    size: int | None = Field(default=None, ge=0)
    excess: int = Field(default=2, ge=1)
    slack: int = Field(default=GiB, ge=0)

    def content(self, announced: int) -> int | None:
        """The most content a tar may have.

        Args:
            announced: Its size as the registry's record has it, in bytes; 0 or less where it has none.

        Returns:
            The bytes; None for as many as arrive.
        """
        if announced <= 0:
            return self.size
        allowed = announced * self.excess + self.slack
        return allowed if self.size is None else min(allowed, self.size)


class Config(_Frozen):
    """All settings of a client: `Config(transfer={"verify": False})`.

    Attributes:
        timeouts: How long to wait.
        retry: How often to try again.
        transfer: How bytes are moved.
        limits: What a tar may hold.
    """

    timeouts: Timeouts = Timeouts()
    retry: RetryPolicy = RetryPolicy()
    transfer: Transfer = Transfer()
    limits: Limits = Limits()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Config:
        """The defaults, with what `ASYNC_BENTO_<GROUP>_<FIELD>` variables say, like `ASYNC_BENTO_TRANSFER_VERIFY=0`.

        Args:
            environ: Where to look.

        Returns:
            The settings.

        Raises:
            ConfigError: A variable's value does not fit; the message names the variable.
        """
        groups: dict[str, dict[str, str]] = {}
        for variable, group, field in _setting_variables():
            if value := environ.get(variable):
                groups.setdefault(group, {})[field] = value
        try:
            return cls.model_validate(groups)
        except ValidationError as error:
            first = error.errors()[0]
            variable = "_".join(("ASYNC_BENTO", *map(str, first["loc"]))).upper()
            raise ConfigError(f"{variable}={first['input']!r}: {first['msg']}") from error


def _setting_variables() -> Iterator[tuple[str, str, str]]:
    for group, info in Config.model_fields.items():
        annotation = info.annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        for field in annotation.model_fields:
            yield f"ASYNC_BENTO_{group}_{field}".upper(), group, field


def bentoml_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory of the local stores, as BentoML finds it (`bentoml/_internal/configuration/containers.py`).

    Args:
        environ: Where to look for `BENTOML_HOME`.

    Returns:
        `$BENTOML_HOME`, with variables and `~` in it expanded, or `~/bentoml`.
    """
    home = environ.get("BENTOML_HOME")
    return Path(os.path.expandvars(home)).expanduser() if home else Path.home() / "bentoml"


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
