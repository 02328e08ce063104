"""The `async-bento` command, on top of `api` and `registry`. Each command's module is imported when it runs."""

from async_bento.cli.main import main

__all__ = ["main"]
