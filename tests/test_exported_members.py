"""The public namespace is flat, sorted and whole."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import async_bento
from async_bento import errors
from async_bento.rest import schemas

if TYPE_CHECKING:
    from types import ModuleType


def test_the_public_names_are_sorted_and_are_all_the_names_there_are() -> None:
    assert async_bento.__all__ == sorted(async_bento.__all__) == dir(async_bento)
    bound = {name for name in async_bento.__all__ if getattr(async_bento, name) is not None}
    assert bound == {*async_bento._MODULES, "__version__"}


def test_the_checkers_find_each_name_where_it_is_imported_from() -> None:
    tree = ast.parse(Path(async_bento.__file__).read_text(encoding="utf-8"))
    imports = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    seen = {
        alias.name: node.module.removeprefix("async_bento.")
        for node in imports
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == async_bento._MODULES


def test_a_name_that_is_none_is_missing() -> None:
    with pytest.raises(AttributeError, match="module 'async_bento' has no attribute 'Bentos'"):
        _ = async_bento.Bentos


@pytest.mark.parametrize(("module", "needs"), [("async_bento", ""), ("async_bento.cli", "click")])
def test_importing_it_imports_nothing_heavy(module: str, needs: str) -> None:
    script = (
        f"import {module}, sys;"
        "print(*{'aiohttp', 'anyio', 'asyncio', 'click', 'pydantic', 'tqdm', 'yaml'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{needs}\n"


def test_importing_the_api_does_not_import_stamina() -> None:
    """An application's `stamina.set_active(False)` turned the retries off while they were stamina's."""
    script = "import async_bento.api.async_api, sys; print('stamina' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_error_is_public() -> None:
    assert {name for name, value in vars(errors).items() if is_own_class(value)} <= set(async_bento.__all__)


def test_whatever_class_a_public_call_takes_or_gives_is_public() -> None:
    own = {
        name
        for module in modules()
        for name, value in vars(module).items()
        if is_own_class(value) and not getattr(value, "_is_protocol", False)  # one fits a protocol without its name
    }
    made_by_callers = (async_bento.AsyncBentoAPI, async_bento.BentoAPI)
    for public in (*made_by_callers, async_bento.AsyncModelAPI, async_bento.ModelAPI):
        for name, member in inspect.getmembers(public, callable):
            if name.startswith("_") and not (name == "__init__" and public in made_by_callers):
                continue
            words = set(re.findall(r"\w+", " ".join(map(str, getattr(member, "__annotations__", {}).values()))))
            missing = {word for word in words & own if word[0] != "_" and word not in async_bento.__all__}
            assert not missing, f"{public.__name__}.{name} speaks of {missing}"


def test_every_schema_with_fields_that_a_public_schema_holds_is_public() -> None:
    for name in async_bento.__all__:
        for field, info in getattr(getattr(async_bento, name), "model_fields", {}).items():
            words = set(re.findall(r"\w+Schema", str(info.annotation)))
            missing = {word for word in words if hasattr(schemas, word) and word not in async_bento.__all__}
            assert not missing, f"{name}.{field} holds {missing}"


def modules() -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(async_bento.__path__, "async_bento.")]
    apart = ("async_bento.__main__", "async_bento.registry.")  # the registry's modules may need an extra
    return [importlib.import_module(name) for name in names if not name.startswith(apart)]


def is_own_class(value: object) -> bool:
    return inspect.isclass(value) and value.__module__.startswith("async_bento.")
