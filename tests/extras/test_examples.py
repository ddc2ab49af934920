"""The scripts made from the notebooks run, in a short form, and leave their figures."""

from __future__ import annotations

import re

import pytest

from benchmarks.notebooks import EXAMPLES
from tests.extras.running import EXAMPLES as FOLDER
from tests.extras.running import printed


@pytest.mark.parametrize("name", [example.name for example in EXAMPLES.values()])
def test_a_script_runs_and_leaves_its_figures(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ITERATIONS", "80")
    assert f"runs/examples/{name}_*.png" in printed(f"{name}.py")
    expected = re.findall(rf"{name}_\d+\.png", (FOLDER / f"{name}.py").read_text())
    found = {path.name for path in (tmp_path / "runs/examples").iterdir()}
    assert found == set(expected)
    assert expected
