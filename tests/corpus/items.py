"""What the corpus holds. `generate.py` says where it comes from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from async_bento import BentoStore, ModelStore
from tests.builders import make_model

CORPUS = Path(__file__).parent
LINES = ["1.0.0", "1.0", "1.1", "1.2", "1.3", "1.4", "by_hand"]
"""The first release and the last of each line, and what was written by hand: forms of before, and rare ones."""

OPTIONS_OF_TODAY = {"1.0.0/models/pickled/v1": {"partial_kwargs": {}}}
"""Models whose `model.yaml` has no options, with those that BentoML 1.4.39 has for their module and sends in their
place. Nothing else differs; what is listed here and does not differ is an error of a test."""

BENTOS = sorted(path.parent for line in LINES for path in (CORPUS / line).glob("bentos/*/*/bento.yaml"))
MODELS = sorted(path.parent for line in LINES for path in (CORPUS / line).glob("models/*/*/model.yaml"))


def tags_of(line: str, items: list[Path]) -> list[str]:
    """The tags of those that are of one line."""
    return [":".join(item.parts[-2:]) for item in items if item.parents[2].name == line]


def copy_to(home: Path, line: str) -> None:
    """Put what a release built into the stores of a home."""
    for kind in ("bentos", "models"):
        shutil.copytree(CORPUS / line / kind, home / kind, symlinks=True)


def make_missing_models(home: Path) -> None:
    """Make the models that bentos of a home only name, since no bento is pushed without them."""
    models = ModelStore(home / "models")
    for bento in BentoStore(home / "bentos").list():
        for model in bento.models:
            if not (model.is_huggingface or (models.path / model.tag.name / (model.tag.version or "")).exists()):
                make_model(home, str(model.tag), options={})


def name_of(item: Path) -> str:
    """An item, in the name of a test."""
    return item.relative_to(CORPUS).as_posix()


def sent_by_bentoml(item: Path) -> dict[str, Any]:
    """What BentoML 1.4.39 says of an item: in `body` what it sends to create it, in `models` what a bento needs."""
    name, version = item.parts[-2:]
    said = json.loads((item.parents[2] / "sent.json").read_text(encoding="utf-8"))
    return said[item.parents[1].name][f"{name}:{version}"]
