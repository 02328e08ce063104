"""The command itself: its words, its exit codes, and what a failure looks like."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

import click

from async_bento._core.version import __version__
from async_bento.cli.errors import INTERRUPTED, exit_code, going_on, is_told
from async_bento.errors import BentoError, ModelsError

if TYPE_CHECKING:
    from collections.abc import Mapping

EPILOG = """\b
Exit codes:
  0    done, or nothing to do
  1    failed
  2    wrong usage, or a setting that does not fit
  3    no such bento or model
  4    the registry does not accept the token
  5    the registry cannot be reached
  130  interrupted
"""


class Group(click.Group):
    """Commands that are imported when they are asked for, so that the command starts at once.

    Args:
        *args: As of `click.Group`.
        later: The command of each name, as `module:attribute`.
        **kwargs: As of `click.Group`.
    """

    def __init__(self, *args: Any, later: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._later = later

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands, for the help.

        Args:
            ctx: The invocation.

        Returns:
            Their names.
        """
        return sorted([*super().list_commands(ctx), *self._later])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command.

        Args:
            ctx: The invocation.
            cmd_name: Its name.

        Returns:
            The command, or None where there is none.
        """
        if cmd_name not in self._later:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._later[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"async_bento.cli.{module}"), attribute)
        return command


class PlainErrors(Group):
    """A group of commands whose errors are a line for a person and an exit code for a script."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command.

        Args:
            ctx: Its invocation.

        Returns:
            What it returned.
        """
        try:
            return super().invoke(ctx)
        except BentoError as error:
            if not is_told(ctx, error):
                click.secho(f"Error: {error}", err=True, fg="red")
            if isinstance(error, ModelsError):
                error = next(iter(error.failures.values()))  # they mostly fail for the same reason
            ctx.exit(exit_code(error))
        except (KeyboardInterrupt, click.Abort):  # the latter is Ctrl-C, or the end of the input, at a prompt
            click.echo(f"Interrupted; {going_on(ctx)}.", err=True)
            ctx.exit(INTERRUPTED)


@click.group(
    cls=PlainErrors,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    later={
        "completion": "completion:completion",
        "context": "login:context",
        "doctor": "doctor:doctor",
        "get": "list_get:get_bento",
        "list": "list_get:list_bentos",
        "login": "login:login",
        "pull": "push_pull:pull",
        "push": "push_pull:push",
        "registry": "serve:registry",
    },
)
@click.version_option(__version__, prog_name="async-bento")
@click.option("-v", "--verbose", count=True, help="Say more: -v what is tried again, -vv everything.")
def main(verbose: int) -> None:
    """Push and pull bentos and models: to BentoCloud, Yatai, or a registry of your own.

    The registry and its token are those of BENTO_CLOUD_API_ENDPOINT and BENTO_CLOUD_API_KEY, or of a context that
    `async-bento login` or `bentoml cloud login` stored: the one that BENTOML_CLOUD_CONTEXT names, or the current one.
    """
    logging.basicConfig(
        level=(logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)], format="%(levelname)s: %(message)s"
    )


@main.group(
    cls=Group,
    later={
        "get": "list_get:get_model",
        "list": "list_get:list_models",
        "pull": "push_pull:pull_model",
        "push": "push_pull:push_models",
    },
)
def models() -> None:
    """Push and pull models."""
