"""The figures' few decisions; those of runs: tests/runs/test_figure.py."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from sciml_snr import figures


def rows(errors: list[float]) -> list[dict[str, float]]:
    return [{"iteration": float(i), "relative_l2": e} for i, e in enumerate(errors)]


def test_error_band_is_median_and_range() -> None:
    ax = Figure().subplots()
    runs = [rows([1.0, 0.2, 0.5]), rows([1.0, 0.4, 0.9]), rows([1.0, 0.3, 0.6])]
    figures.error_band(ax, runs, "adam", "C0")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1.0, 0.3, 0.6])
    assert ax.lines[0].get_label() == "adam: best 0.300, final 0.600"
    assert ax.lines[1].get_xydata().tolist() == [[1.0, 0.3]]
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.2, 1.0)


def test_runs_of_different_length_share_what_all_have() -> None:
    ax = Figure().subplots()
    figures.error_band(ax, [rows([1.0, 0.2]), rows([1.0, 0.4, 0.1])], "adam", "C0")
    assert len(ax.lines[0].get_ydata()) == 2


@pytest.mark.parametrize(("value", "label"), [(0.2, "0.2"), (0.05, "0.05"), (0.3, ""), (20, "20")])
def test_minor_labels(value: float, label: str) -> None:
    assert figures.label_125(value) == label


def test_a_logarithmic_axis_of_less_than_half_a_decade_has_numbers() -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.semilogy([0, 1], [0.52, 0.58])
    figures.number_log_axis(ax)
    figure.draw_without_rendering()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    low, high = ax.get_ylim()
    shown = [float(label) for label in labels if label and low <= float(label) <= high]
    assert len(shown) >= 3


def test_a_course_of_misfits_is_labelled_as_such() -> None:
    ax = Figure().subplots()
    log = [{"iteration": float(i), "misfit": m} for i, m in enumerate([50.0, 2.0, 1.0])]
    figures.error_band(ax, [log], "adam", "C0", "misfit")
    assert ax.get_ylabel() == "misfit R"
    assert ax.lines[0].get_label() == "adam: final 1"
