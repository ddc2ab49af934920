"""The documents say what the results files say, and their examples run."""

import importlib
import json
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
    changed = re.sub(r"(\| `snr_gn` \|) 0\.\d+", r"\1 0.00", README, count=1)
    assert changed != README
    path = tmp_path / "README.md"
    path.write_text(changed)
    monkeypatch.setattr(report, "DOCUMENTS", (path,))
    assert report.stale() == [path]


SHORTER = {
    "10_000": "20",
    "400)": "5)",
    "500))": "2))",
    "fit_field(x, y, sigma=0.1)": "fit_field(x, y, sigma=0.1, steps=3, progress=False)",
    '"noisy.png"': '"noisy.png", steps=3, progress=False',
    '"scan.ply"': '"scan.ply", steps=3, progress=False',
    "memorization()": "memorization(progress=False)",
}
"""What makes the README's examples quick."""


@pytest.mark.parametrize("which", range(3), ids=["deepxde", "torch", "fits"])
def test_readme_example_runs(which: int, tmp_path, monkeypatch, capsys) -> None:
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
    names = {"sciml_snr": sciml_snr, "net": net, "x": x, "y": 2 * x}
    names["physics"] = lambda net: net(x).square().mean()
    code = EXAMPLES[which]
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    exec(code, names)
    if which == 0:
        adam, ours = capsys.readouterr().out.splitlines()[-2:]
        assert adam.startswith("adam: error of u") and ours.startswith("snr_gn: error of u")
        assert "+-" in adam and "+-" in ours


def test_readme_has_all_its_examples_and_is_short() -> None:
    assert len(EXAMPLES) == 3
    assert len(README.splitlines()) <= 120


def test_readme_shows_the_output_of_its_example(tmp_path, monkeypatch) -> None:
    assert report.readme.output() in README
    path = tmp_path / "README.md"
    path.write_text(README.replace("(200, 2)", "(300, 2)"))
    monkeypatch.setattr(report.readme, "README", path)
    with pytest.raises(ValueError, match=r"python -m benchmarks\.readme"):
        report.readme.output()


def test_the_example_of_the_problems_page_runs() -> None:
    page = (ROOT / "docs/reference/problems.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict = {}
    exec(code.replace("8000", "3"), names)
    assert {"relative_l2", "lambda_2_relative_error", "memorized"} <= names["errors"].keys()


def test_the_problems_page_has_every_problem_and_no_markup_of_sphinx() -> None:
    page = (ROOT / "docs/reference/problems.md").read_text()
    for name in PROBLEMS:
        assert f"| [{name}](#{name}) |" in page and f"\n### {name}\n" in page
    assert not re.search(r":(math|class|meth|func):|\.\. math|Args:", page)


HIDDEN = re.compile(r"^```.*?^```|<!--.*?-->|`[^`\n]+`", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
PAGES = [*report.DOCUMENTS, ROOT / "CHANGELOG.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]


def words_of(page: Path) -> str:
    """The text of a page, of a notebook's cells of text, without code."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return HIDDEN.sub("", text)


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    code = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", code.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(words_of(page)):
        to = page.parent / target if target else page
        assert to.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors_of(to), f"{page} links to {target}#{anchor}"


@pytest.mark.parametrize("folder", ["sciml_snr", "problems", "benchmarks", "examples"])
def test_pages_named_in_the_sources_are_there(folder: str) -> None:
    for source in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).glob("*.toml")]:
        for name in re.findall(r"\b(?:docs|benchmarks)/[\w/-]+\.md", source.read_text()):
            assert (ROOT / name).exists(), f"{source} names {name}"


def test_lines_of_the_documentation_are_short() -> None:
    """But for tables, code and what is made by a program."""
    made = re.compile(r"<!-- table: .*?<!-- end -->|^```.*?^```", flags=re.DOTALL | re.MULTILINE)
    for page in (ROOT / "docs").rglob("*.md"):
        for line in made.sub("", page.read_text()).splitlines():
            short = re.sub(r"\]\([^)]*\)", "]", line)  # the address of a link cannot be broken
            assert len(short) <= 120 or line.startswith("|"), f"{page}: {line}"


def test_every_public_name_is_in_the_reference() -> None:
    pages = (ROOT / "docs/reference").glob("*.md")
    shown = set(re.findall(r"^::: (\S+)$", "\n".join(p.read_text() for p in pages), flags=re.M))
    for module in ("sciml_snr", "sciml_snr.fields", "sciml_snr.problems"):
        for name in importlib.import_module(module).__all__:
            if name not in ("__version__", "Array"):
                assert f"{module}.{name}" in shown, (
                    f"{module}.{name} is in no page of docs/reference"
                )
    for name in importlib.import_module("sciml_snr.deepxde").__all__:
        assert {f"sciml_snr.{name}", f"sciml_snr.deepxde.{name}"} & shown, name
