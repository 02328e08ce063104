"""Signals that interrupt the command: SIGTERM and SIGHUP do to a push or a pull what Ctrl-C does."""

from __future__ import annotations

import signal
from contextlib import suppress

import click

_RECEIVED = "async_bento.signal"  # a key of click's `Context.meta`


def cancel_on_signals() -> None:
    """Let SIGTERM and SIGHUP cancel the running task, unless the command was started with the signal ignored.

    Only the first one counts: some senders send it twice, to the process and to its group, as `timeout` does.
    """
    import asyncio

    loop, task, meta = asyncio.get_running_loop(), asyncio.current_task(), click.get_current_context().meta

    def cancel(number: signal.Signals) -> None:
        if _RECEIVED not in meta and task is not None:
            meta[_RECEIVED] = number
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        if not is_ignored(number):
            with suppress(RuntimeError, ValueError):  # not in the main thread, where a program runs the command
                loop.add_signal_handler(number, cancel, number)


def is_ignored(number: signal.Signals) -> bool:
    """Whether a signal is ignored: SIGHUP by `nohup`, SIGINT by a shell script that starts the command with `&`."""
    return signal.getsignal(number) is signal.SIG_IGN


def exit_code_of_signal(ctx: click.Context) -> int:
    """The exit code of an interrupted command, as a shell writes it: 128 and the number of the signal."""
    number: signal.Signals = ctx.meta.get(_RECEIVED, signal.SIGINT)
    return 128 + number
