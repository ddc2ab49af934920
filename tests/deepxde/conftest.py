"""What the tests of the DeepXDE part share."""

import deepxde as dde
import numpy as np
import pytest
import torch

from sciml_snr import set_SNR_options


@pytest.fixture(autouse=True)
def seeded_and_back_to_defaults():
    torch.manual_seed(0)
    np.random.seed(0)
    set_SNR_options()
    yield
    set_SNR_options()


@pytest.fixture
def float64():
    before = dde.config.default_float()
    dde.config.set_default_float("float64")
    yield
    dde.config.set_default_float(before)


@pytest.fixture
def mixed_precision():
    before = dde.config.default_float()
    dde.config.set_default_float("mixed")
    yield
    dde.config.mixed = False
    dde.config.set_default_float(before)


@pytest.fixture
def short_lbfgs(monkeypatch):
    for option in ("maxiter", "iter_per_step", "fun_per_step"):
        monkeypatch.setitem(dde.optimizers.LBFGS_options, option, 20)
