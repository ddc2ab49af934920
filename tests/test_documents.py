"""The documents say what the results files say, and their examples run."""

import re
from pathlib import Path

import pytest
from sciml_snr.problems import PROBLEMS

from benchmarks import report
from benchmarks.convection import METHODS
from sciml_snr.gate import BESIDE_EXACT

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_tables_are_those_of_the_results() -> None:
    assert report.stale() == []


def test_the_method_called_default_is_the_default() -> None:
    _, options = METHODS["SNRSOAP, label floor (default)"]
    default = BESIDE_EXACT["eigen"]
    assert options == {"floor": "label", "gate": default.form, "z": default.z}


def test_a_stale_table_is_noticed(tmp_path, monkeypatch) -> None:
    changed = re.sub(r"(\| AdamW \|(?: [\d.]+ \|)+) 0\.\d+", r"\1 0.000", README, count=1)
    assert changed != README
    path = tmp_path / "README.md"
    path.write_text(changed)
    monkeypatch.setattr(report, "DOCUMENTS", (path,))
    assert report.stale() == [path]


SHORTER = {
    "10000": "20",
    "10_000": "20",
    "fit_field(x, y, sigma=0.1)": "fit_field(x, y, sigma=0.1, steps=3, progress=False)",
    '"noisy.png"': '"noisy.png", steps=3, progress=False',
    '"scan.ply"': '"scan.ply", steps=3, progress=False',
    "resolution=128": "resolution=16",
    "period=500": "period=10",
    "iterations=400": "iterations=5",
    "iterations=100)": "iterations=2)",
    "fit.memorization()": "fit.memorization(progress=False)",
}
"""What makes the README's examples quick."""


@pytest.mark.parametrize(
    "which",
    range(len(EXAMPLES)),
    ids=["deepxde", "torch", "label", "fits", "error_bars", "memorization", "gauss_newton"],
)
def test_readme_example_runs(which: int, tmp_path, monkeypatch) -> None:
    """With fewer iterations, and with the network, data and files that it takes for granted."""
    import imageio.v3 as iio
    import numpy as np
    import torch
    import trimesh

    import sciml_snr

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    iio.imwrite("noisy.png", rng.integers(60, 200, (16, 16), dtype=np.uint8))
    points = trimesh.creation.icosphere(2).vertices
    trimesh.PointCloud(points + 0.01 * rng.normal(size=points.shape)).export("scan.ply")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x = torch.rand(20, 1)
    names = {"torch": torch, "sciml_snr": sciml_snr, "net": net, "points": points}
    names |= {"x": x, "y": 2 * x, "batches": [(x, 2 * x)] * 3}
    names["physics"] = lambda net: net(x).square().mean()
    asks = "error_bars(model" in EXAMPLES[which]
    if asks:
        names |= {"points": rng.random((5, 2)), "k": torch.nn.Parameter(torch.ones(()))}
    goes_on = ("model.train" in EXAMPLES[which] and which > 0) or asks  # with the first's model
    code = (EXAMPLES[0] if goes_on else "") + EXAMPLES[which]
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    exec(code, names)


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
