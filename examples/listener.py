"""A progress listener that prints a line of JSON for each tenth of a transfer.

    python examples/listener.py iris_classifier:v3

A listener is any callable that takes a `ProgressEvent`. It runs on the event loop and must return at once.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from async_bento import BentoAPI, ProgressEvent


class JsonLines:
    """Print an event if the phase changed or another tenth of the bytes was transferred."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[str, int]] = {}

    def __call__(self, event: ProgressEvent, /) -> None:
        tenth = event.bytes_done * 10 // event.bytes_total if event.bytes_total else 0
        if self._last.get(event.id) != (event.phase, tenth):
            self._last[event.id] = (event.phase, tenth)
            print(json.dumps(asdict(event)), flush=True)


if __name__ == "__main__":
    with BentoAPI(progress=JsonLines()) as api:
        api.push(sys.argv[1])
