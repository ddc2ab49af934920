"""The notebooks as scripts: examples/NAME.py, from notebooks/*.ipynb.

    python -m benchmarks.notebooks

A script has the notebook's code, its headings as comments, and a smaller budget, so that it takes
less than two minutes on one core. Figures are saved instead of shown. Change the notebook, and call
this again: tests/test_notebooks.py compares both.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Example:
    """A script: its name, its budget in place of the notebook's (None: the same), its output."""

    name: str
    iterations: int | None
    prints: str


EXAMPLES = {
    "01_noisy_pde_in_deepxde": Example(
        "noisy_pde",
        4000,
        "the memorized share of both fits, and the rates of lynx and hare beside least squares.",
    ),
    "02_why_the_gate_holds": Example(
        "why_the_gate_holds",
        700,
        "final and best quality of the four fits, and the estimated sigma.",
    ),
    "03_denoise_an_image": Example(
        "denoise_an_image",
        None,
        "the quality of the fit, of Adam's and of non-local means, and the memorized share.",
    ),
    "04_surface_from_a_noisy_scan": Example(
        "surface_from_a_scan",
        600,
        "distances of both meshes from the true surface, and the memorized share of a curve.",
    ),
    "05_measuring_memorization": Example(
        "measuring_memorization",
        600,
        "memorized shares with the truth and by twins, and the moment of the lowest risk.",
    ),
    "06_inverse_problem_with_real_noise": Example(
        "inverse_problem",
        1200,
        "the unknowns by three optimizers beside least squares, and errors on years left out.",
    ),
    "07_error_bars": Example(
        "error_bars",
        None,
        "coefficients and a flux with their error bars, and what these say of a wrong equation.",
    ),
    "08_tomography": Example(
        "tomography",
        None,
        "the quality of the fit and of Adam's, and the misfit, which needs no truth.",
    ),
}

HEAD = '''"""{title}

{text}

It prints {prints}
Its figures go to runs/examples/.

    python examples/{name}.py

With more iterations, and explained step by step:
notebooks/{notebook}.ipynb
This script is made from it, by python -m benchmarks.notebooks.
"""

'''

FOLDER = """
FIGURES = Path("runs/examples")
FIGURES.mkdir(parents=True, exist_ok=True)
"""


TIME = re.compile(r"(?:Running all of it|It) takes [\w ]+ on one core\.")
LINK = re.compile(r"\[(.*?)\]\(.*?\)")
FIGURE = re.compile(r"^(plt\.show\(\)|figure|\w+\.figure\(\)|figures\.\w+\(.*\))$", re.MULTILINE)
"""A line of a cell that shows a figure."""


def script(notebook: str) -> str:
    """The script of a notebook, formatted."""
    example = EXAMPLES[notebook]
    first, imports, *cells = nbformat.read(ROOT / f"notebooks/{notebook}.ipynb", as_version=4).cells
    title, _, text = LINK.sub(r"\1", TIME.sub("", first.source)).partition("\n")
    code = imports.source
    if example.iterations is not None:
        code = re.sub(r'("ITERATIONS"), \d+\)', rf"\1, {example.iterations})", code)
    parts = ["from pathlib import Path\n" + code + FOLDER]
    numbers = iter(range(1, 100))

    def saved(match: re.Match[str]) -> str:
        shown = "plt" if match[0] == "plt.show()" else match[0]
        return f'{shown}.savefig(FIGURES / "{example.name}_{next(numbers)}.png")'

    headings: list[str] = []
    for cell in cells:
        if cell.cell_type == "markdown":
            headings += re.findall(r"^#+ (.*)$", cell.source, flags=re.MULTILINE)
        else:  # a heading that no code follows is left out
            parts += [f"\n# {heading}" for heading in headings[-1:]]
            parts.append(FIGURE.sub(saved, cell.source))
            headings = []
    parts.append(f'print(f"figures: {{FIGURES}}/{example.name}_*.png")')
    title = title.lstrip("# ") + ("" if title.endswith("?") else ".")
    head = HEAD.format(title=title, text=wrapped(text), notebook=notebook, **vars(example))
    return formatted(head + "\n".join(parts) + "\n")


def wrapped(text: str) -> str:
    """Paragraphs of a notebook in lines that a docstring may have; lists stay as they are."""
    paragraphs = text.strip().replace("This notebook", "This script").split("\n\n")
    is_list = re.compile(r"(-|\d+\.) ")
    return "\n\n".join(p if is_list.match(p) else textwrap.fill(p, 98) for p in paragraphs)


def formatted(code: str) -> str:
    """By ruff: imports in order, blank lines where they belong."""
    for command in (["check", "--select=I,F401", "--fix", "--quiet", "-"], ["format", "-"]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                *command,
                "--no-cache",
                "--stdin-filename=examples/x.py",
            ],
            input=code,
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        code = done.stdout
    return code


def path_of(notebook: str) -> Path:
    """Where the script of a notebook is."""
    return ROOT / "examples" / f"{EXAMPLES[notebook].name}.py"


if __name__ == "__main__":
    for notebook in EXAMPLES:
        path_of(notebook).write_text(script(notebook))
