"""Figures of runs: what their panels show."""

from pathlib import Path

import numpy as np
import pytest
from sciml_snr.problems import Heat

from sciml_snr.runs.figure import comparison_figure, drawn, read_run
from sciml_snr.runs.run import ProblemConfig, solve


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Path:
    """A field with its truth."""
    folder = tmp_path_factory.mktemp("known")
    solve(ProblemConfig("heat", iterations=8, points=40, optimizer="adam"), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Own measurements, of which there is no truth."""
    folder = tmp_path_factory.mktemp("own")
    found = Heat(points=40).observations
    table = np.hstack([found.points, found.values, found.sigma])
    np.savetxt(folder / "own.csv", table, "%.9g", ",", header="x,t,u,sigma", comments="")
    data = str(folder / "own.csv")
    config = ProblemConfig("heat", data=data, iterations=8, held_out=0.0, optimizer="adam")
    solve(config, folder / "run", progress=False)
    return folder / "run"


def panels(folder: Path) -> list:
    """The axes without colour bars and without what is drawn inside others."""
    return [ax for ax in drawn(folder).axes if ax.get_label() != "<colorbar>" and ax.axison]


def test_fields_have_x_horizontal_and_state_what_they_show(known: Path) -> None:
    fields, _ = read_run(known)
    _, fit, difference, *_ = panels(known)
    for ax, values in ((fit, fields["fit"]), (difference, fields["fit"] - fields["reference"])):
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "t")
        np.testing.assert_allclose(ax.images[0].get_array(), values.reshape(101, 51).T)
    assert difference.get_title(loc="left") == "u, fit - truth"
    scale = difference.images[0].norm
    assert scale.vmin == -scale.vmax


def test_without_a_truth_the_width_of_the_band_is_shown_in_its_place(own: Path) -> None:
    fields, _ = read_run(own)
    slices, _, width, residuals, course, unknown = panels(own)
    half = (fields["fit_high"] - fields["fit_low"])[:, 0] / 2
    np.testing.assert_allclose(width.images[0].get_array(), half.reshape(101, 51).T)
    assert "95 %" in width.get_title(loc="left")
    texts = [t.get_text() for ax in (slices, residuals, course, unknown) for t in ax.texts]
    assert not any("truth" in text for text in texts)
    assert course.get_ylabel().startswith("misfit R")
    np.testing.assert_allclose(course.lines[0].get_ydata()[-1], _misfit(fields), rtol=1e-4)


def _misfit(fields: dict) -> float:
    return float((fields["observed_residual"] ** 2).mean())


def test_slices_state_their_time_and_have_error_bars_and_bands(known: Path) -> None:
    fields, _ = read_run(known)
    slices = panels(known)[0]
    legend = slices.get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    times = [float(label.removeprefix("t = ")) for label in labels]
    assert len(times) == 3 and times[0] < 0.1 and times[-1] > 0.9
    assert len(slices.containers) >= 1
    lines = [line for line in slices.lines if line.get_label() in labels]
    at = np.isclose(fields["points"][:, 1], times[1])
    np.testing.assert_allclose(lines[1].get_ydata(), fields["fit"][at, 0])
    bars = slices.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([np.ptp(bar[:, 1]) for bar in bars], 2 * 0.048, rtol=1e-5)


def test_legends_are_outside(known: Path) -> None:
    for ax in panels(known):
        legend = ax.get_legend()
        if legend is not None:
            box = legend.get_bbox_to_anchor().transformed(ax.transAxes.inverted())
            assert box.y0 == pytest.approx(1.0)


def test_residuals_and_their_histogram(known: Path) -> None:
    fields, _ = read_run(known)
    ax = panels(known)[3]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), fields["observed_residual"][:, 0])
    heights, edges, _ = ax.child_axes[0].patches[0].get_data()
    assert (heights * np.diff(edges)).sum() == pytest.approx(1.0)


def test_unknowns_over_iterations_with_their_band(known: Path) -> None:
    ax = panels(known)[5]
    _, rows = read_run(known)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [row["diffusivity"] for row in rows])
    assert ax.get_ylabel() == "diffusivity (band: 95 %)"


def test_all_outputs_have_their_row(tmp_path) -> None:
    config = ProblemConfig("kovasznay", iterations=2, optimizer="adam")
    solve(config, tmp_path, progress=False)
    titles = [ax.get_title(loc="left") for ax in panels(tmp_path)]
    for name in "uvp":
        assert {f"{name}, fit", f"{name}, fit - truth"} <= set(titles)


def test_other_formats(own: Path, tmp_path) -> None:
    comparison_figure(tmp_path, [own], "pdf")
    assert (tmp_path / "comparison.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "comparison.png").exists()
