"""The public names: complete, sorted, and alone in having docstrings with sections."""

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
    from collections.abc import Iterator
    from types import ModuleType


def test_public_names_are_complete() -> None:
    assert async_bento.__all__ == sorted(async_bento.__all__) == dir(async_bento)
    bound = {name for name in async_bento.__all__ if getattr(async_bento, name) is not None}
    assert bound == {*async_bento._MODULES, "__version__"}


def test_type_checker_names_match() -> None:
    tree = ast.parse(Path(async_bento.__file__).read_text(encoding="utf-8"))
    imports = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    seen = {
        alias.name: node.module.removeprefix("async_bento.")
        for node in imports
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == async_bento._MODULES


def test_wrong_name_raises() -> None:
    with pytest.raises(AttributeError, match="module 'async_bento' has no attribute 'Bentos'"):
        _ = async_bento.Bentos


@pytest.mark.parametrize(("module", "needs"), [("async_bento", ""), ("async_bento.cli", "click")])
def test_package_import_is_light(module: str, needs: str) -> None:
    script = (
        f"import {module}, sys;"
        "print(*{'aiohttp', 'anyio', 'asyncio', 'click', 'pydantic', 'tqdm', 'yaml'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{needs}\n"


def test_api_does_not_import_stamina() -> None:
    """An application's `stamina.set_active(False)` turned the retries off while they were stamina's."""
    script = "import async_bento.api.async_api, sys; print('stamina' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_public_names_include_errors() -> None:
    assert {name for name, value in vars(errors).items() if is_own_class(value)} <= set(async_bento.__all__)


def test_signature_classes_are_public() -> None:
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
            assert not missing, f"{public.__name__}.{name} mentions {missing}"


def test_nested_schemas_are_public() -> None:
    for name in async_bento.__all__:
        for field, info in getattr(getattr(async_bento, name), "model_fields", {}).items():
            words = set(re.findall(r"\w+Schema", str(info.annotation)))
            missing = {word for word in words if hasattr(schemas, word) and word not in async_bento.__all__}
            assert not missing, f"{name}.{field} holds {missing}"


PUBLIC_MODULES = (
    "async_bento",
    "async_bento.integrations.bentoml",
    "async_bento.integrations.pytest_plugin",
    "async_bento.registry",
)
SECTION = re.compile(r"^ *(Args|Attributes|Raises|Returns|Yields):$", re.MULTILINE)


def exports() -> dict[str, object]:
    """Return each class and function that a public module exports."""
    found: dict[str, object] = {}
    for module in map(importlib.import_module, PUBLIC_MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(unwrap(value)):
                found[f"{module.__name__}.{name}"] = value
    return found


def unwrap(member: object) -> object:
    """The function below a fixture, a property or a class method."""
    for attribute in ("__func__", "fget", "_fixture_function", "__wrapped__"):
        member = getattr(member, attribute, None) or member
    return member


def own_bases(value: object) -> list[type]:
    """Return a class and its bases from this package, whose documentation is part of the class."""
    return [base for base in inspect.getmro(value) if is_own_class(base)] if inspect.isclass(value) else []


def public_methods(value: object) -> dict[str, object]:
    return {
        name: member
        for base in reversed(own_bases(value))
        for name, member in vars(base).items()
        if not name.startswith(("_", "model_")) and inspect.isroutine(unwrap(member))  # `model_` is pydantic's
    }


def public_definitions() -> set[tuple[str, str]]:
    """The module and the qualified name of each definition that may have a docstring with sections."""
    found: set[tuple[str, str]] = set()
    for value in exports().values():
        for base in own_bases(value) or [unwrap(value)]:
            found.add((base.__module__, base.__qualname__))
            special = [f"{base.__qualname__}.{name}" for name in ("__init__", "__call__")]
            found |= {(base.__module__, name) for name in special}
        for method in map(unwrap, public_methods(value).values()):
            found.add((method.__module__, method.__qualname__))
    return found


def docstrings(node: ast.AST, scope: str = "") -> Iterator[tuple[str, str]]:
    """The qualified name and the docstring of each definition in a module."""
    for child in ast.iter_child_nodes(node):
        inside = scope
        if isinstance(child, (ast.AsyncFunctionDef, ast.ClassDef, ast.FunctionDef)):
            yield f"{scope}{child.name}", ast.get_docstring(child) or ""
            inside = f"{scope}{child.name}." if isinstance(child, ast.ClassDef) else f"{scope}{child.name}.<locals>."
        yield from docstrings(child, inside)


def test_private_docs_have_no_sections() -> None:
    root, public = Path(async_bento.__file__).parent, public_definitions()
    found = [
        f"{path.relative_to(root)}: {name}"
        for path in sorted(root.rglob("*.py"))
        for name, text in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        if SECTION.search(text) and (module_of(path), name) not in public
    ]
    assert not found, "\n".join(found)


def module_of(path: Path) -> str:
    parts = path.relative_to(Path(async_bento.__file__).parents[1]).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_docstring_share_is_bounded() -> None:
    lines = documented = 0
    for path in Path(async_bento.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.AsyncFunctionDef, ast.ClassDef, ast.FunctionDef, ast.Module)):
                documented += lines_of(node.body[0]) if ast.get_docstring(node) else 0
    assert documented <= lines / 5


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_public_names_are_documented() -> None:
    members = {
        name: member
        for exported, value in exports().items()
        for name, member in {exported: value, **with_prefix(f"{exported}.", public_methods(value))}.items()
    }
    undocumented: list[str] = []
    for name, member in members.items():
        text, sections = inspect.getdoc(member), needed_sections(member)
        if not text:
            undocumented.append(f"{name} has no docstring")
        elif sections and not any(section in text for section in sections):
            undocumented.append(f"{name} has no section {' or '.join(sections)}")
    assert not undocumented, "\n".join(sorted(undocumented))


def with_prefix(prefix: str, members: dict[str, object]) -> dict[str, object]:
    return {f"{prefix}{name}": member for name, member in members.items()}


def needed_sections(member: object) -> tuple[str, ...]:
    """The sections one of which describes the parameters or the fields; an exception's message needs no description."""
    if not inspect.isclass(member):
        parameters = inspect.signature(unwrap(member)).parameters.keys() - {"self", "cls"}
        return ("Args:",) if parameters else ()
    if issubclass(member, BaseException):
        return ("Attributes:",) if "__init__" in vars(member) else ()
    if any(not name.startswith("_") and name.islower() for name in inspect.get_annotations(member)):
        return "Args:", "Attributes:"
    init = vars(member).get("__init__")
    files = {async_bento.AsyncRemoteFile, async_bento.AsyncRemoteFiles, async_bento.RemoteFiles}
    made_by_apis = {async_bento.ModelAPI, *files}
    made_by_callers = getattr(init, "__module__", None) == member.__module__ and member not in made_by_apis
    return ("Args:",) if made_by_callers and inspect.signature(member).parameters else ()


def modules() -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(async_bento.__path__, "async_bento.")]
    apart = ("async_bento.__main__", "async_bento.registry.")  # the registry's modules may need an extra
    return [importlib.import_module(name) for name in names if not name.startswith(apart)]


def is_own_class(value: object) -> bool:
    return inspect.isclass(value) and value.__module__.startswith("async_bento.")
