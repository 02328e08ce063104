"""Run `examples/notebook.ipynb` in a real kernel and check its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.notebook

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def test_notebook_stores_no_output() -> None:
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


async def test_notebook_runs_every_cell() -> None:
    notebook = read()
    await NotebookClient(notebook, timeout=30, kernel_name="python3").async_execute()  # raises where a cell does
    result = {cell.id: outputs(cell) for cell in notebook.cells if cell.cell_type == "code"}

    assert "<td" in result["push"]["text/html"]
    assert "greeter:v1" in result["push"]["text/html"]
    assert "pushed" in result["push"]["text/html"]
    assert result["list"]["text/html"].index("greeter:v2") < result["list"]["text/html"].index("greeter:v1")
    assert "2 bentos" in result["list"]["text/html"]
    assert "team=notebooks" in result["get"]["text/html"]
    assert "The bytes are identical: True" in result["pull"]["text"]
    assert "/theirs/bentos/greeter/v1" in result["pull"]["text/html"]
    assert result["await"]["text/plain"] == "['greeter:v1', 'greeter:v2']"
    assert "already pushed" in result["await-again"]["text/html"]
    assert result["error"]["text"].startswith("no bento greter in the registry at ")
    assert len(result["error"]["text"].splitlines()) == 1
    assert "error" not in {output.output_type for cell in notebook.cells for output in cell.get("outputs", [])}


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(cell: Any) -> dict[str, str]:
    """Return the result of a cell by MIME type, and its output as `text`."""
    found = {"text": "".join(output.text for output in cell.outputs if output.output_type == "stream")}
    for output in cell.outputs:
        if output.output_type == "execute_result":
            found.update(output.data)
    return found
