"""The notebook of the documentation runs in a kernel, and shows what it shows."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parents[2] / "docs"


def shown(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Returns what the cells show: the kind or the name of the stream, and the text. A kernel may send a stream in parts."""
    texts: list[tuple[str, str]] = []
    for number, cell in enumerate(notebook.cells):
        parts = [(each.get("name", each.output_type), each) for each in cell.get("outputs", [])]
        for name in dict.fromkeys(name for name, _ in parts):
            text = "".join(each.text if "text" in each else each.data["text/plain"] for kind, each in parts if kind == name)
            texts.append((f"{number} {name}", text))
    return texts


@pytest.fixture(scope="module")
def executed() -> nbformat.NotebookNode:
    """The notebook, run from its first cell to its last in a process of its own."""
    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    path = os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(DOCS)}})
    return client.execute(env=os.environ | {"PYTHONPATH": path})


@pytest.mark.slow
@pytest.mark.processes
def test_the_notebook_shows_what_its_stored_outputs_show(executed):
    stored = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    assert shown(executed) == shown(stored)
    assert {name.split()[1] for name, _ in shown(executed)} == {"stdout", "execute_result"}


@pytest.mark.slow
@pytest.mark.processes
def test_the_notebook_shows_the_verdict_as_html(executed):
    pages = [output.data["text/html"] for cell in executed.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("The model is sane, and the run is complete" in page and "Identity check passed" in page for page in pages)
