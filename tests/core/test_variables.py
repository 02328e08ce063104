"""The list of environment variables, from which a page of the documentation is generated."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from async_bento._core import variables

PACKAGE = Path(variables.__file__).parents[1]
NAME = re.compile(r"(ASYNC_BENTO|BENTO_CLOUD|BENTOML|HF)_[A-Z_]*[A-Z]")


def names_in_code() -> set[str]:
    """Return each string of the package that is the name of a variable."""
    return {
        node.value
        for path in PACKAGE.rglob("*.py")
        if path != Path(variables.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value)
    }


def test_variables_list_is_complete() -> None:
    listed = {*variables.REGISTRY, *variables.BEHAVIOUR, *variables.SERVER, *variables.HUGGING_FACE}

    assert names_in_code() - listed == set()
    # huggingface_hub reads the others.
    assert listed - names_in_code() <= set(variables.HUGGING_FACE)
