"""What the pages and examples say is run. It needs what the examples need, so that `nox -s docs` runs it alone."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("fastapi") is None or find_spec("mkdocs") is None:
    collect_ignore_glob = ["test_*.py"]
