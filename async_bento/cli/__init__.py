"""The `async-bento` command. Each command's module is imported when that command runs."""

from async_bento.cli.main import main

__all__ = ["main"]
