"""Options that several commands share, and the decorator that runs a command on an event loop."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click

from async_bento._core.garbage import resume_collection
from async_bento.cli.completion import complete_context
from async_bento.cli.errors import mark_resumable
from async_bento.cli.progress import make_listener, progress_options
from async_bento.cli.signals import cancel_on_signals
from async_bento.config import GiB, KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.config import Config

logger = logging.getLogger(__package__)

_RATE = "async_bento.rate"  # a key of click's `Context.meta`
_UNITS = {"K": KiB, "M": MiB, "G": GiB, "T": 1024 * GiB}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class RegistryOptions:
    """The options of every command that sends requests to a registry."""

    endpoint: str | None
    context: str | None
    as_json: bool

    def make_transfer_api(self, *, is_single: bool = True, resumable: bool = True) -> AsyncBentoAPI:
        """Create an API for commands that push or pull one item or several; it shows progress."""
        from async_bento.api.async_api import AsyncBentoAPI

        # The imports are done: a transfer may run for hours.
        resume_collection()
        config = transfer_config()
        if resumable and config.transfer.resume:
            mark_resumable()
        cancel_on_signals()
        listener = make_listener(is_single=is_single)
        return AsyncBentoAPI(endpoint=self.endpoint, context=self.context, config=config, progress=listener)


def parse_size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """Parse a size like `500M` or `200G` into bytes."""
    return _parse_bytes(value, "MGT", "size. Use MiB, GiB or TiB, like 500M, 200G or 2T")


def _set_rate(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    context.meta[_RATE] = _parse_bytes(value, "KMG", "rate. Use KiB, MiB or GiB per second, like 500K, 50M or 1G")


def _parse_bytes(value: str | None, units: str, expected: str) -> int | None:
    if value is None:
        return None
    found = re.fullmatch(rf"([0-9]{{1,6}})([{units}])", value)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{value!r} is no {expected}.")
    return int(found[1]) * _UNITS[found[2]]


def rate_option(command: Callable[P, T]) -> Callable[P, T]:
    """Add --limit-rate, which `transfer_config` applies."""
    return click.option(
        "--limit-rate",
        metavar="RATE",
        expose_value=False,
        callback=_set_rate,
        help="Transfer at most RATE bytes per second, like 500K, 50M or 1G.",
    )(command)


def transfer_config() -> Config:
    """The settings of the variables, with the rate of the running command."""
    from async_bento.config import Config

    config = Config.from_env()
    rate: int | None = click.get_current_context().meta.get(_RATE)
    if rate is None:
        return config
    return config.model_copy(update={"transfer": config.transfer.model_copy(update={"rate_limit": rate})})


def asynchronous(command: Callable[P, Coroutine[object, object, T]]) -> Callable[P, T]:
    """Run a command on a new event loop."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        import asyncio

        try:
            if sys.version_info < (3, 11):  # asyncio.run does not turn Ctrl-C into the cancellation of the command
                import anyio

                return anyio.run(partial(command, *args, **kwargs))
            return asyncio.run(command(*args, **kwargs))
        except asyncio.CancelledError as error:  # cancelled by a signal; on Python 3.10 also by Ctrl-C
            raise KeyboardInterrupt from error

    return run


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def registry_options(command: Callable[Concatenate[RegistryOptions, P], T]) -> Callable[..., T]:
    """Add --endpoint, --context and --json, and pass them as the first argument; add --progress and --quiet."""

    @json_option
    @progress_options
    @click.option(
        "--context",
        metavar="NAME",
        shell_complete=complete_context,
        help="Context to use instead of the current one.",
    )
    @click.option("--endpoint", metavar="URL", help="Registry to use instead of the configured one.")
    @wraps(command)
    def run(endpoint: str | None, context: str | None, as_json: bool, *args: P.args, **kwargs: P.kwargs) -> T:
        return command(RegistryOptions(endpoint, context, as_json), *args, **kwargs)

    return run


def push_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add --all, --force, --threads and --limit-rate."""
    command = rate_option(command)
    command = click.option(
        "--threads",
        "-t",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        help="Maximum number of parts to upload at once.",
    )(command)
    command = click.option("--force", "-f", is_flag=True, help="Push even if the registry has this version.")(command)
    return click.option("--all", "select_all", is_flag=True, help="Push everything in the local store.")(command)


def dry_run_option(command: Callable[..., T]) -> Callable[..., T]:
    """Add --dry-run."""
    return click.option("--dry-run", is_flag=True, help="Show what would be transferred, and change nothing.")(command)


def pull_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add --all, --force, --output and --limit-rate."""
    command = rate_option(command)
    command = click.option(
        "--output",
        "-o",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        help="Put the files into DIR, which is absent or empty, instead of the local store.",
    )(command)
    help_force = "Download again and replace the local copy, or the one in DIR."
    command = click.option("--force", "-f", is_flag=True, help=help_force)(command)
    return click.option(
        "--all", "select_all", is_flag=True, help="Pull every version in the registry whose upload is complete."
    )(command)


def filter_options(command: Callable[P, T]) -> Callable[P, T]:
    """Add --search and --label."""
    command = click.option("--search", "-s", metavar="TEXT", help="Only names that contain TEXT.")(command)
    return click.option(
        "--label",
        "-l",
        "labels",
        multiple=True,
        metavar="KEY=VALUE",
        callback=check_searchable_labels,
        help="Only records with this label; repeat to require several.",
    )(command)


def check_searchable_labels(
    _context: click.Context, _parameter: click.Parameter, labels: tuple[str, ...]
) -> tuple[str, ...]:
    """Refuse labels that a registry cannot search for."""
    for label in labels:
        key, _, value = label.partition("=")
        if key.endswith("!"):
            raise click.BadParameter(
                f"{label!r} looks like a negation, and labels are only selected by the value that they have. To leave "
                f"records out, use `async-bento list --query '-label:{key[:-1]}={value}'`."
            )
        if not key or not value or len(label.split()) > 1:
            raise click.BadParameter(f"{label!r} does not have the form KEY=VALUE without spaces.")
    return labels


_QUERY_TERMS = {
    "label": None,
    "-label": None,
    "in": ("name", "description"),
    "sort": tuple(f"{field}-{order}" for field in ("build_at", "created_at", "size") for order in ("desc", "asc")),
}
"""Terms of Yatai's queries, and their values; None for any value (yatai-schemas `schemasv1/q.go`)."""


def warn_of_unknown_terms(query: str | None) -> None:
    """Log a warning of the terms of a query that a registry ignores."""
    unknown = [term for term in (query or "").split() if not _is_known(term)]
    if unknown:
        logger.warning(
            "the registry may ignore %s in the query: unknown. Known are words, label:KEY=VALUE, -label:KEY=VALUE, "
            "in:name, in:description, and sort:build_at, sort:created_at or sort:size with -desc or -asc.",
            ", ".join(unknown),
        )


def _is_known(term: str) -> bool:
    key, colon, value = term.partition(":")
    if not colon:
        return True
    values = _QUERY_TERMS.get(key, ())
    return bool(value) if values is None else value in values
