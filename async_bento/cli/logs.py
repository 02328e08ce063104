"""The log of a command, on standard error."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    StreamHandler = logging.StreamHandler[TextIO]
else:
    StreamHandler = logging.StreamHandler  # not generic at runtime before Python 3.11

_REPEAT_AFTER = 5.0  # seconds until the same line is written again


def set_up_logging(verbose: int) -> None:
    """Log warnings and waits for the registry; with 1 all retries, too, with 2 all requests."""
    handler = _Handler()
    handler.addFilter(_RepetitionFilter())
    logging.basicConfig(format="%(levelname)s: %(message)s", handlers=[handler])
    logging.getLogger("async_bento").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    if not verbose:
        logging.getLogger("async_bento.rest").setLevel(logging.INFO)


class _Handler(StreamHandler):
    """Writes above progress bars, if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if tqdm is None:
            super().emit(record)
        else:
            try:
                tqdm.write(self.format(record), file=self.stream)
            except OSError:  # after SIGHUP, the terminal is gone
                self.handleError(record)


class _RepetitionFilter(logging.Filter):
    """Drops retries that thirty models of a bento have for the same reason."""

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[tuple[object, ...], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.args, tuple) or not record.msg.startswith("retrying"):
            return True
        attempt, _, _, error = record.args
        key, now = (attempt, str(error)), time.monotonic()
        if now - self._written.get(key, -_REPEAT_AFTER) < _REPEAT_AFTER:
            return False
        self._written[key] = now
        return True
