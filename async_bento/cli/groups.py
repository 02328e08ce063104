"""Groups of commands: they suggest the command that a misspelt name means, and import commands on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import click

from async_bento.cli.logs import accept_verbose

if TYPE_CHECKING:
    from collections.abc import Mapping

_SYNONYMS = {
    "check": "verify",
    "compare": "diff",
    "dir": "list",
    "download": "pull",
    "info": "get",
    "ls": "list",
    "prune": "store prune",
    "remove": "delete",
    "rm": "delete",
    "serve": "registry serve",
    "show": "get",
    "tag": "label",
    "upload": "push",
    "version": "--version",
}
"""What people type who know other tools, and the command or option it means, in each group that has it."""


class Group(click.Group):
    """A group whose error for an unknown command suggests a known one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            suggestion = self._suggest(ctx, name)
            hint = f" Did you mean `{ctx.command_path} {suggestion}`?" if suggestion else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        known, command, more = super().resolve_command(ctx, args)
        if command is not None:
            accept_verbose(command)
        return known, command, more

    def _suggest(self, ctx: click.Context, name: str) -> str | None:
        import difflib

        commands = self.list_commands(ctx)
        synonym = _SYNONYMS.get(name, "")
        # Only the root suggests its options.
        if synonym.partition(" ")[0] in commands or (synonym.startswith("--") and ctx.parent is None):
            return synonym
        return next(iter(difflib.get_close_matches(name.lower(), commands, n=1)), None)


class LazyGroup(Group):
    """A group that imports a command, given as `module:attribute`, when that command is used."""

    def __init__(self, *args: Any, lazy_commands: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy_commands = lazy_commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of all commands."""
        return sorted([*super().list_commands(ctx), *self._lazy_commands])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self._lazy_commands:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._lazy_commands[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"async_bento.cli.{module}"), attribute)
        return command
