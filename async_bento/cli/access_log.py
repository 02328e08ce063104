"""The access log of `async-bento registry serve`, on standard output."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def access_log(form: Literal["text", "json"] | None) -> Generator[logging.Logger | None]:
    """Yield a logger whose lines a thread prints, since a pipe that nobody reads must not stop the registry."""
    if form is None:
        yield None
        return
    logger = logging.getLogger("async_bento.registry.access")
    queue: SimpleQueue[Any] = SimpleQueue()
    printed = logging.StreamHandler(sys.stdout)
    printed.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    listener = QueueListener(queue, printed)
    # The log of the command is on standard error: these lines are not to appear there, too.
    logger.handlers, logger.propagate = [QueueHandler(queue)], False
    logger.setLevel(logging.INFO)
    listener.start()
    try:
        yield logger
    finally:
        listener.stop()
        logger.handlers, logger.propagate = [], True


class _TextFormatter(logging.Formatter):
    """Write a line with the time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.getMessage()}"


class _JsonFormatter(logging.Formatter):
    """Write the fields of a request as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "access", {})
        return json.dumps({"time": _time(record), **fields})


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
