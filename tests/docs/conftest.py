"""Collect these tests only where the dependencies of the examples are installed: in `nox -s docs`."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("fastapi") is None or find_spec("mkdocs") is None:
    collect_ignore_glob = ["test_*.py"]
