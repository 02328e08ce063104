"""The options of `async-bento registry serve` that make the registry a mirror."""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import SecretStr

from async_bento.cli.options import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True)
class MirrorOptions:
    """The upstream of a mirror; without one, the registry is none."""

    url: str | None
    api_token: SecretStr | None
    size: int | None

    def __str__(self) -> str:
        return f" as a mirror of {self.url}" if self.url else ""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `LocalRegistry`."""
        return {"upstream": self.url, "upstream_token": self.api_token, "mirror_size": self.size}


def mirror_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add the options of a mirror, and pass them as the argument after the positional ones."""

    @click.option(
        "--upstream",
        metavar="URL",
        envvar="ASYNC_BENTO_REGISTRY_UPSTREAM",
        show_envvar=True,
        help="Mirror this registry: fetch items on request, and keep them.",
    )
    @click.option(
        "--upstream-token-file",
        "upstream_token_file",
        metavar="FILE",
        envvar="ASYNC_BENTO_REGISTRY_UPSTREAM_TOKEN_FILE",
        show_envvar=True,
        help="File with the API token for the upstream.",
    )
    @click.option(
        "--mirror-size",
        "mirror_size",
        metavar="SIZE",
        callback=parse_size,
        help="Maximum size of the mirror, like 500M, 200G or 2T: above it, delete the least recently pulled items.",
    )
    @wraps(command)
    def run(
        *args: object, upstream: str | None, upstream_token_file: str | None, mirror_size: int | None, **options: object
    ) -> T:
        if upstream is None and (upstream_token_file is not None or mirror_size is not None):
            raise click.UsageError("--upstream-token-file and --mirror-size require --upstream.")
        if upstream is not None and upstream_token_file is None:
            raise click.UsageError("--upstream requires --upstream-token-file.")
        api_token = None if upstream_token_file is None else _read_token(upstream_token_file)
        return command(*args, MirrorOptions(upstream, api_token, mirror_size), **options)

    return run


def _read_token(path: str) -> SecretStr:
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise click.UsageError(f"cannot read the token of the upstream in {path}: {reason}.") from error
    if not token:
        raise click.UsageError(f"{path} is empty. Write the token of the upstream into it.")
    return SecretStr(token)
