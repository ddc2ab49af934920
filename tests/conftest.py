"""Settings for all tests."""

import os

os.environ.setdefault("DDE_BACKEND", "pytorch")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(autouse=True)
def coarse_bands(monkeypatch):
    """Bands in run folders from few points: time."""
    monkeypatch.setattr("sciml_snr.runs.bars.POINTS", 50)
