"""The examples of the documentation's pages run, and its messages are those of the sources."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import deepxde as dde
import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh

import sciml_snr
from sciml_snr.bench import read_plan
from sciml_snr.fields import fit_field
from tests.cases import assert_same_bits

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = {
    "how-to/pina.md": "examples/with_pina.py, in tests/extras",
    "how-to/lightning.md": "examples/with_lightning.py, in tests/extras",
    "how-to/accelerate.md": "examples/with_accelerate.py, in tests/extras",
    "how-to/processes.md": "tests/test_processes.py",
    "reference/problems.md": "tests/test_documents.py",
    "concepts/deepxde.md": "tests/deepxde: what goes wrong in DeepXDE",
}
"""Pages whose examples need what is not here, or are run by other tests."""


def code_of(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


PAGES = sorted(
    page
    for page in (str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    if code_of(page) and page not in ELSEWHERE
)
SHORTER = (
    (r"iterations=\d+", "iterations=3"),
    (r"ProgressBar\(\d+\)", "ProgressBar(3)"),
    (r"range\(\d{3,}\)", "range(3)"),
    (r"while not optimizer.done:", "for _ in range(2):"),
    (r"(period|patience)=\d+", r"\1=1"),
    (r"resolution=\d+", "resolution=12"),
    (r"fit_(image|sdf|field)\((.*?)\)(?= *#|\n|$)", r"fit_\1(\2, steps=2, progress=False)"),
    (r"memorization\(\)", "memorization(progress=False)"),
    (r"fit\.error_bars\(\)", "fit.error_bars(progress=False)"),
)
"""What makes the examples quick."""


def small_model() -> dict:
    x = np.random.default_rng(0).uniform(0, 1, (20, 2))
    k = dde.Variable(1.0)
    measured = sciml_snr.NoisyPointSetBC(x, np.sin(x[:, :1]), sigma=0.1)
    square = dde.geometry.Rectangle([0, 0], [1, 1])
    data = dde.data.PDE(
        square, lambda x, u: k * dde.grad.hessian(u, x, i=0, j=0) + u, [measured], num_domain=20
    )
    model = dde.Model(data, dde.nn.FNN([2, 8, 1], "tanh", "Glorot normal"))
    model.compile("snr_adam", lr=3e-3, external_trainable_variables=k)
    model.train(iterations=2, verbose=0)
    return {"model": model, "k": k, "points": x, "x": x, "y": np.sin(x[:, :1])}


def small_network() -> dict:
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x = torch.rand(20, 1)
    return {"net": net, "x": x, "y": 2 * x, "physics_rows": lambda net: net(x[:3])}


def an_image() -> dict:
    pixels = np.random.default_rng(0).integers(60, 200, (16, 16), dtype=np.uint8)
    for name in ("noisy.tif", "noisy.png"):
        iio.imwrite(name, pixels)
    iio.imwrite("sigma.tif", np.full((16, 16), 5, dtype=np.uint8))
    photons = np.random.default_rng(0).poisson(np.linspace(20, 200, 80), (80, 80))
    iio.imwrite("photons.tif", photons.astype(np.uint8))
    return {}


def a_scan() -> dict:
    points = trimesh.creation.icosphere(2).vertices
    points = points + 0.01 * np.random.default_rng(0).normal(size=points.shape)
    trimesh.PointCloud(points).export("scan.ply")
    return {"points": points}


def samples() -> dict:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (40, 2))
    return {
        "x": x,
        "y": np.sin(3 * x[:, 0]) + 0.1 * rng.normal(size=40),
        "points": x,
        "sinogram": rng.normal(size=(4, 8)),
        "angles": np.linspace(0, 3, 4),
        "detectors": np.linspace(-1, 1, 8),
        "upper": torch.ones(40, 1),
        "lower": torch.zeros(40, 1),
    }


def a_fit_and_a_model() -> dict:
    made = samples()
    fit = fit_field(made["x"], made["y"], sigma=0.1, steps=2, progress=False)
    return {**small_model(), **small_network(), "fit": fit}


GIVEN: dict[str, Callable[[], dict]] = {
    "how-to/budget.md": small_model,
    "how-to/error-bars.md": a_fit_and_a_model,
    "how-to/fields.md": samples,
    "how-to/images.md": an_image,
    "how-to/learning-rate.md": small_model,
    "how-to/stopping.md": small_model,
    "index.md": small_model,
    "how-to/surfaces.md": a_scan,
}
"""What a page takes for granted: names, and files in the working directory."""


def run(page: str, folder: Path, monkeypatch) -> dict:
    """All examples of a page, one after the other: the names that they leave."""
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    names = {"torch": torch, "np": np, "dde": dde, "sciml_snr": sciml_snr, "__name__": page}
    names |= GIVEN.get(page, dict)()
    for code in code_of(page):
        for long, short in SHORTER:
            code = re.sub(long, short, code, flags=re.MULTILINE)
        exec(compile(code, page, "exec", dont_inherit=True), names)
    return names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch) -> None:
    run(page, tmp_path, monkeypatch)


def test_what_the_page_on_torch_saves_is_the_whole_state(tmp_path, monkeypatch) -> None:
    names = run("how-to/torch.md", tmp_path, monkeypatch)
    weights, state = torch.load("checkpoint.pt")
    net = copy.deepcopy(names["net"])
    noise = sciml_snr.NoisyLoss(sigma=0.1, population=200)
    optimizer = sciml_snr.SNRAdam(net.parameters(), lr=1e-3, noise=noise)
    net.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert_same_bits(optimizer.state_dict()["state"], names["optimizer"].state_dict()["state"])


def test_the_plan_of_the_page_on_comparisons_can_be_read(tmp_path) -> None:
    (plan,) = code_of("how-to/compare.md", "toml")
    path = tmp_path / "plan.toml"
    path.write_text(plan)
    assert {"adam", "snr_adam", "stopped"} <= set(read_plan(path).methods)


def test_the_messages_of_the_page_on_troubles_are_in_the_sources() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "sciml_snr").rglob("*.py"))
    said = re.sub(r"""["']\s*\n\s*f?["']""", "", sources)  # literals over several lines
    headings = re.findall(
        r"^### (`.+)$", (DOCS / "how-to/troubleshooting.md").read_text(), flags=re.MULTILINE
    )
    assert len(headings) > 20
    for heading in headings:
        for message in re.findall(r"`([^`]+)`", heading):
            message = message.removeprefix("error_bars: ")
            part = max(message.split("..."), key=len).strip()
            assert part in said, f"no message has: {part}"
