"""Settings for all tests."""

import os

os.environ.setdefault("DDE_BACKEND", "pytorch")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(autouse=True)
def coarse_bands(monkeypatch):
    """Error bars of runs from few rows, and bands from few points: time."""
    monkeypatch.setattr("sciml_snr.runs.bars.POINTS", 50)
    monkeypatch.setattr("sciml_snr.deepxde.error_bars.EQUATION_ROWS", 100)
