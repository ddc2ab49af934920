"""More points of an equation for compile("snr_gn"): where from, and where there are none."""

import deepxde as dde
import numpy as np
import pytest
import torch

from sciml_snr import NoisyLoss, NoisyPointSetBC, SNRGaussNewton, error_bars, set_SNR_options
from sciml_snr.deepxde.points import EQUATION_POINTS, more_points
from tests.cases import assert_same_bits
from tests.deepxde.models import LINE, measured, model

SQUARE = dde.geometry.Rectangle([0, 0], [1, 1])


def compiled_rows(m, **options):
    m.compile("snr_gn", verbose=0, **options)
    return m


def square(num_domain=9, **options):
    return dde.data.PDE(SQUARE, lambda x, u: u, [], num_domain=num_domain, **options)


def test_they_are_in_the_geometry_as_many_as_are_missing_and_the_same_every_time():
    data = square()
    drawn = more_points(data, data.train_x, 50)
    assert drawn.shape == (41, 2) and drawn.dtype == data.train_x.dtype
    assert SQUARE.inside(drawn).all()
    before = np.random.get_state()[1].copy()
    assert_same_bits(torch.tensor(more_points(data, data.train_x, 50)), torch.tensor(drawn))
    assert (np.random.get_state()[1] == before).all()  # nothing else gets other random numbers
    assert not np.array_equal(more_points(data, data.train_x[:8], 49)[:41], drawn)


def test_they_spread_over_the_whole_geometry():
    data = square()
    drawn = more_points(data, data.train_x, 10_009)
    np.testing.assert_allclose(drawn.mean(0), 0.5, atol=4 / np.sqrt(12 * 10_000))
    np.testing.assert_allclose(drawn.var(0), 1 / 12, atol=0.003)


def test_a_model_that_has_chosen_its_points_keeps_them():
    anchors = np.random.default_rng(0).random((5, 2)).astype(np.float32)
    alone = square(0, anchors=anchors)
    assert len(more_points(alone, alone.train_x, 50)) == 0
    replaced = square()
    replaced.replace_with_anchors(anchors)
    assert len(more_points(replaced, replaced.train_x, 50)) == 0
    beside = square(9, anchors=anchors)
    assert len(more_points(beside, beside.train_x, 50)) == 50 - 14
    many = square(60)
    assert len(more_points(many, many.train_x, 50)) == 0


def test_a_geometry_that_draws_none_adds_none():
    class Silent(dde.geometry.Rectangle):
        def random_points(self, n, random="pseudo"):
            if n > 20:
                raise NotImplementedError
            return super().random_points(n, random)

    data = dde.data.PDE(Silent([0, 0], [1, 1]), lambda x, u: u, [], num_domain=9)
    assert len(more_points(data, data.train_x, 50)) == 0


def test_excluded_places_stay_out():
    corner = np.array([[0.5, 0.5]], dtype=np.float32)

    class Corners(dde.geometry.Rectangle):
        def random_points(self, n, random="pseudo"):
            return np.tile(corner, (n, 1)) if n > 20 else super().random_points(n, random)

    data = dde.data.PDE(
        Corners([0, 0], [1, 1]), lambda x, u: u, [], num_domain=9, exclusions=corner
    )
    assert len(more_points(data, data.train_x, 50)) == 0


@pytest.mark.parametrize("points, rows", [(None, EQUATION_POINTS), (40, 40), (0, 10), (3, 10)])
def test_a_step_has_at_least_so_many(points, rows):
    if points is not None:
        set_SNR_options(equation_points=points)
    m = compiled_rows(model(measured(0.05)))
    m.train(1, display_every=100, verbose=0)
    assert m.opt.stats().rows == rows + 6  # and the measurements


def test_what_has_errors_gets_no_more():
    m = compiled_rows(model(measured(0.05)), loss=[NoisyLoss(0.3), "MSE"])
    m.train(1, display_every=100, verbose=0)
    assert m.opt.stats().rows == 16


def test_where_more_do_not_fit_in_memory_there_are_the_models_own():
    m = model(measured(0.05))
    m.compile(SNRGaussNewton(m.net, max_gigabytes=1e-4), verbose=0)
    m.train(1, display_every=100, verbose=0)
    assert m.opt.stats().rows == 16


def test_functions_of_place_are_evaluated_there_too():
    def source(x):
        return np.sin(3 * x)

    def equation(x, u, f):
        return dde.grad.hessian(u, x) + f

    condition = NoisyPointSetBC(np.array([[0.2], [0.7]]), np.array([[0.1], [0.3]]), 0.1)
    data = dde.data.PDE(LINE, equation, [condition], num_domain=8, auxiliary_var_function=source)
    m = compiled_rows(dde.Model(data, dde.nn.FNN([1, 7, 1], "tanh", "Glorot normal")))
    m.train(12, display_every=100, verbose=0)
    x = np.linspace(0.05, 0.95, 40)[:, None]
    found = m.predict(x, operator=lambda x, u: dde.grad.hessian(u, x))
    assert np.abs(found + source(x)).mean() < 0.1


def test_between_a_models_own_points_the_equation_holds_better():
    def residual(points):
        set_SNR_options(equation_points=points)
        dde.config.set_random_seed(1)
        m = compiled_rows(model(measured(0.05), domain=4))
        m.train(30, display_every=100, verbose=0)
        x = np.linspace(-1, 1, 200)[:, None]
        equation = m.data.pde
        return np.sqrt(np.mean(m.predict(x, operator=lambda x, u: equation(x, u)) ** 2))

    assert residual(300) < 0.7 * residual(0)


def test_error_bars_are_of_the_same_rows():
    m = compiled_rows(model(measured(0.05)))
    m.train(20, display_every=100, verbose=0)
    assert np.isfinite(error_bars(m)(np.array([[0.5]]))).all()
    m.compile("adam", lr=1e-3, verbose=0)
    assert m.sciml_snr_equation_points == 0
