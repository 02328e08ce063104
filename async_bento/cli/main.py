"""The root of the `async-bento` command."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

import click

from async_bento._core.version import __version__
from async_bento.cli.errors import exit_code, expect_json, expects_json, print_error, print_interruption
from async_bento.cli.groups import LazyGroup
from async_bento.cli.logs import accept_verbose, set_up_logging
from async_bento.cli.process import process_errors
from async_bento.cli.progress import progress_options
from async_bento.cli.signals import exit_code_of_signal
from async_bento.errors import BentoError

_EPILOG = """\b
Exit codes:
  0    success, or nothing to do
  1    failure, or a difference
  2    wrong usage, or an invalid setting
  3    bento or model not found
  4    the registry does not accept the API token
  5    the registry cannot be reached
  129  interrupted by SIGHUP
  130  interrupted by Ctrl-C
  143  interrupted by SIGTERM
"""


class RootGroup(LazyGroup):
    """The root group; it turns errors into one line on standard error and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the arguments and run a command."""
        if "_ASYNC_BENTO_COMPLETE" in os.environ:
            from async_bento.cli.completion import register

            register()
        arguments = args[0] if args else kwargs.get("args")
        with process_errors(as_json="--json" in (sys.argv if arguments is None else arguments)):
            return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options of the root."""
        # Before the options are parsed: an error of the parser is to be JSON, too.
        if "--json" in args:
            expect_json(ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BentoError as error:
            print_error(error)
            ctx.exit(exit_code(error))
        except click.ClickException as error:
            if not expects_json(ctx):
                raise
            print_error(error)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):  # click raises Abort for Ctrl-C and Ctrl-D at a prompt
            with suppress(OSError):  # after SIGHUP, the terminal is gone
                print_interruption(ctx)
            ctx.exit(exit_code_of_signal(ctx))


@click.group(
    cls=RootGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    lazy_commands={
        "cat": "files:cat_bento",
        "completion": "completion:completion",
        "copy": "copy:copy_bentos",
        "context": "login:context",
        "delete": "delete:delete_bentos",
        "diff": "verify:diff_bentos",
        "doctor": "doctor:doctor",
        "exists": "list_get:bento_exists",
        "get": "list_get:get_bento",
        "label": "labels:label_bento",
        "list": "list_get:list_bentos",
        "login": "login:login",
        "logout": "login:logout",
        "ls": "files:ls_bento",
        "models": "main:models",
        "pull": "push_pull:pull",
        "push": "push_pull:push",
        "registry": "registry:registry",
        "store": "store:store",
        "verify": "verify:verify_bento",
        "whoami": "login:whoami",
    },
)
@click.version_option(__version__, "-V", "--version", prog_name="async-bento")
@progress_options
@click.pass_context
def main(ctx: click.Context) -> None:
    """Push and pull bentos and models to and from BentoCloud, Yatai or your own registry.

    The endpoint and the API token come from BENTO_CLOUD_API_ENDPOINT and BENTO_CLOUD_API_KEY, or from a context that
    `async-bento login` or `bentoml cloud login` stored: the one named by BENTOML_CLOUD_CONTEXT, or the current one.
    """
    set_up_logging(ctx)


accept_verbose(main, hidden=False)


@click.group(
    cls=LazyGroup,
    lazy_commands={
        "cat": "files:cat_model",
        "copy": "copy:copy_models",
        "delete": "delete:delete_models",
        "diff": "verify:diff_models",
        "exists": "list_get:model_exists",
        "get": "list_get:get_model",
        "label": "labels:label_model",
        "list": "list_get:list_models",
        "ls": "files:ls_model",
        "pull": "push_pull:pull_models",
        "push": "push_pull:push_models",
        "verify": "verify:verify_model",
    },
)
def models() -> None:
    """Push, pull, copy, list, get, label and delete models."""
