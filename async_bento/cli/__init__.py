"""The `async-bento` command, a module for each few of its words; each is imported when it is asked for."""

from async_bento.cli.main import main

__all__ = ["main"]
