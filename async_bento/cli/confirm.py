"""The question before a deletion in a store or a registry."""

from __future__ import annotations

import sys

import click

from async_bento.cli.signals import raise_on_signals
from async_bento.errors import ConfigError


def confirm(question: str) -> None:
    """Ask on a terminal, and exit with 1 unless the answer is yes; raise `ConfigError` elsewhere."""
    if not _can_ask():
        raise ConfigError("cannot ask for confirmation: standard input is not a terminal. Pass --yes.")
    with raise_on_signals():  # the prompt blocks the event loop of the command
        is_confirmed = click.confirm(question, err=True)
    if not is_confirmed:
        click.echo("Nothing was deleted.", err=True)
        click.get_current_context().exit(1)


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
