"""The tutorials run, in a short form."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from benchmarks import notebooks

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ITERATIONS", "80")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=path.parent)
    assert all(o.output_type != "error" for c in notebook.cells for o in c.get("outputs", ()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_its_outputs(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_says_what_it_shows_and_what_to_take_away(path: Path) -> None:
    first, *_, last = nbformat.read(path, as_version=4).cells
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert last.source.startswith("## To take away\n")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_script_in_examples_is_in_step(path: Path) -> None:
    """If not: python -m benchmarks.notebooks."""
    script = notebooks.path_of(path.stem).read_text()
    assert script == notebooks.script(path.stem)


def test_every_notebook_has_a_script() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(notebooks.EXAMPLES)
