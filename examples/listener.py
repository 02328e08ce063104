"""A listener of one's own: a line of JSON for each tenth of the way, for a log that machines read.

    python examples/listener.py iris_classifier:v3

A listener is anything that takes a `ProgressEvent`. It is called on the event loop, so it must return at once.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from async_bento import BentoAPI, ProgressEvent


class JsonLines:
    """Writes an event when its item enters another phase, or another tenth of its bytes has moved."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], tuple[str, int]] = {}

    def __call__(self, event: ProgressEvent, /) -> None:
        tenth = event.bytes_done * 10 // event.bytes_total if event.bytes_total else 0
        item = (event.kind, event.tag)
        if self._said.get(item) != (event.phase, tenth):
            self._said[item] = (event.phase, tenth)
            print(json.dumps(asdict(event)), flush=True)


if __name__ == "__main__":
    with BentoAPI(progress=JsonLines()) as api:
        api.push(sys.argv[1])
