"""What the corpus holds. `generate.py` says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent
RELEASES = ["1.0", "1.1", "1.2", "1.3", "1.4"]
LINES = [*RELEASES, "by_hand"]
"""The releases, and the forms of theirs that they no longer write by themselves."""

BENTOS = sorted(path.parent for line in LINES for path in (CORPUS / line).glob("bentos/*/*/bento.yaml"))
MODELS = sorted(path.parent for line in LINES for path in (CORPUS / line).glob("models/*/*/model.yaml"))


def name_of(item: Path) -> str:
    """An item, in the name of a test."""
    return item.relative_to(CORPUS).as_posix()


def sent_by_bentoml(item: Path) -> dict[str, Any]:
    """What BentoML 1.4.39 says of an item: in `body` what it sends to create it, in `models` what a bento needs."""
    name, version = item.parts[-2:]
    said = json.loads((item.parents[2] / "sent.json").read_text(encoding="utf-8"))
    return said[item.parents[1].name][f"{name}:{version}"]
