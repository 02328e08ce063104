"""The items of the corpus, which `generate.py` builds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from async_bento import BentoStore, ModelStore
from tests.builders import make_model

CORPUS = Path(__file__).parent
LINES = ["1.0.0", "1.0", "1.1", "1.2", "1.3", "1.4", "by_hand"]
"""The first release, the last release of each line, and items written by hand: older and rare forms."""

OPTIONS_OF_TODAY = {"1.0.0/models/pickled/v1": {"partial_kwargs": {}}}
"""Models whose `model.yaml` has no options, with the default options that BentoML 1.4.39 sends for their module. A test
fails for any other difference, and for an entry of this table that does not differ."""

BENTOS = sorted(path.parent for line in LINES for path in (CORPUS / line).glob("bentos/*/*/bento.yaml"))
MODELS = sorted(path.parent for line in LINES for path in (CORPUS / line).glob("models/*/*/model.yaml"))


def tags_of(line: str, items: list[Path]) -> list[str]:
    """Return the tags of the items of one line."""
    return [":".join(item.parts[-2:]) for item in items if item.parents[2].name == line]


def copy_to(home: Path, line: str) -> None:
    """Copy the items of a release into the stores of a home."""
    for kind in ("bentos", "models"):
        shutil.copytree(CORPUS / line / kind, home / kind, symlinks=True)


def make_missing_models(home: Path) -> None:
    """Make the missing models of the bentos in a home, since a push needs them."""
    models = ModelStore(home / "models")
    for bento in BentoStore(home / "bentos").list():
        for model in bento.models:
            if not (model.is_huggingface or (models.path / model.tag.name / (model.tag.version or "")).exists()):
                make_model(home, str(model.tag), options={})


def name_of(item: Path) -> str:
    """Return the name of an item in a test ID."""
    return item.relative_to(CORPUS).as_posix()


def sent_by_bentoml(item: Path) -> dict[str, Any]:
    """Return the request body of BentoML 1.4.39 for an item (`body`), and the models of a bento (`models`)."""
    name, version = item.parts[-2:]
    sent = json.loads((item.parents[2] / "sent.json").read_text(encoding="utf-8"))
    return sent[item.parents[1].name][f"{name}:{version}"]
