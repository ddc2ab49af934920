"""The documents say what the results files say, and their examples run."""

import re
from pathlib import Path

import pytest
from sciml_snr.problems import PROBLEMS

from benchmarks import report
from benchmarks.convection import METHODS
from sciml_snr.dde.registration import LABEL_GATES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_tables_are_those_of_the_results() -> None:
    assert report.stale() == []


def test_the_method_called_default_is_the_default() -> None:
    optimizer, options = METHODS["SNRAdam, label floor (default)"]
    default = LABEL_GATES[optimizer]
    chosen = {**default, "z": None if "alpha" in options else default["z"], **options}
    assert chosen.pop("floor") == "label"
    assert in_errors(chosen) == in_errors(default)


def in_errors(gate: dict) -> dict:
    """A gate with its threshold as z: the square root of alpha, where a floor is given."""
    z = gate["alpha"] ** 0.5 if gate["z"] is None else gate["z"]
    return {**gate, "alpha": None, "z": z}


def test_a_stale_table_is_noticed(tmp_path, monkeypatch) -> None:
    changed = re.sub(r"(\| AdamW \|(?: [\d.]+ \|)+) 0\.\d+", r"\1 0.000", README, count=1)
    assert changed != README
    path = tmp_path / "README.md"
    path.write_text(changed)
    monkeypatch.setattr(report, "DOCUMENTS", (path,))
    assert report.stale() == [path]


@pytest.mark.parametrize("code", EXAMPLES, ids=["deepxde", "torch", "label"])
def test_readme_example_runs(code: str) -> None:
    """With fewer iterations, and with the network and data that the text takes for granted."""
    import torch

    import sciml_snr

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x = torch.rand(20, 1)
    names = {"torch": torch, "sciml_snr": sciml_snr, "net": net}
    names |= {"x": x, "y": 2 * x, "batches": [(x, 2 * x)] * 3}
    exec(code.replace("10000", "20").replace("10_000", "20"), names)


def test_the_example_of_the_problems_page_runs() -> None:
    page = (ROOT / "docs/problems.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict = {}
    exec(code.replace("8000", "3"), names)
    assert {"relative_l2", "lambda_2_relative_error", "memorized"} <= names["errors"].keys()


def test_the_problems_page_has_every_problem_and_no_markup_of_sphinx() -> None:
    page = (ROOT / "docs/problems.md").read_text()
    for name in PROBLEMS:
        assert f"| [{name}](../problems/" in page and f"\n### {name}\n" in page
    assert not re.search(r":(math|class|meth|func):|\.\. math|Args:", page)


def test_links_lead_somewhere() -> None:
    for page in report.DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page} links to {target}"
