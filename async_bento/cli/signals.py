"""Signals: SIGTERM, SIGHUP and Ctrl-Break interrupt a push or a pull like Ctrl-C; all of them interrupt a prompt."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Generator

_RECEIVED = "async_bento.signal"  # a key of click's `Context.meta`


if sys.platform == "win32":
    _INTERRUPTS = (signal.SIGTERM, signal.SIGBREAK)

    def add_handler(loop: AbstractEventLoop, number: signal.Signals, callback: Callable[[], object]) -> None:
        """Call a function in the loop when a signal arrives; Windows' loops have no method for that."""

        def call(_number: int, _frame: object) -> None:
            loop.call_soon_threadsafe(callback)

        signal.signal(number, call)

else:
    _INTERRUPTS = (signal.SIGTERM, signal.SIGHUP)

    def add_handler(loop: AbstractEventLoop, number: signal.Signals, callback: Callable[[], object]) -> None:
        """Call a function in the loop when a signal arrives."""
        loop.add_signal_handler(number, callback)


STOPS = (signal.SIGINT, *_INTERRUPTS) if sys.platform == "win32" else (signal.SIGINT, signal.SIGTERM)
"""Signals that stop a server: Ctrl-C, Ctrl-Break, and what a supervisor sends."""


def cancel_on_signals() -> None:
    """Let SIGTERM, SIGHUP and Ctrl-Break cancel the running task, unless the signal was ignored at the start.

    Only the first one counts: some senders send it twice, to the process and to its group, as `timeout` does.
    """
    import asyncio

    loop, task, meta = asyncio.get_running_loop(), asyncio.current_task(), click.get_current_context().meta

    def cancel(number: signal.Signals) -> None:
        if _RECEIVED not in meta and task is not None:
            meta[_RECEIVED] = number
            task.cancel()

    for number in _INTERRUPTS:
        if not is_ignored(number):
            with suppress(RuntimeError, ValueError):  # not in the main thread, where a program runs the command
                add_handler(loop, number, partial(cancel, number))


@contextmanager
def raise_on_signals() -> Generator[None]:
    """Let the signals that an event loop handles interrupt a block that stops the loop, such as a prompt."""
    meta = click.get_current_context().meta

    def interrupt(number: int, _frame: object) -> None:
        meta.setdefault(_RECEIVED, signal.Signals(number))
        raise KeyboardInterrupt

    # Not those that are ignored or end the process.
    handled = {number: handler for number in {*STOPS, *_INTERRUPTS} if callable(handler := signal.getsignal(number))}
    try:
        with suppress(ValueError):  # not in the main thread, where a program runs the command
            for number in handled:
                signal.signal(number, interrupt)
        yield
    finally:
        with suppress(ValueError):
            for number, handler in handled.items():
                signal.signal(number, handler)


def is_ignored(number: signal.Signals) -> bool:
    """Whether a signal is ignored: SIGHUP by `nohup`, SIGINT by a shell script that starts the command with `&`."""
    return signal.getsignal(number) is signal.SIG_IGN


def exit_code_of_signal(ctx: click.Context) -> int:
    """The exit code of an interrupted command, as a shell writes it: 128 and the number of the signal."""
    number: signal.Signals = ctx.meta.get(_RECEIVED, signal.SIGINT)
    return 128 + number
