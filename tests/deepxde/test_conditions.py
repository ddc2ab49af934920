"""Conditions that know the error of their values: what they take, refuse, and leave as it was."""

import copy
import math
import pickle
import re

import deepxde as dde
import numpy as np
import pytest
import torch

from sciml_snr import (
    NoisyPointSetBC,
    SigmaEstimate,
    estimate_sigma_scattered,
    noisy,
    set_SNR_options,
)
from sciml_snr.deepxde import noise_of
from tests.cases import assert_same_bits
from tests.deepxde.models import (
    LINE,
    ONE_POINT,
    SIGMA,
    X,
    Y,
    assert_close,
    ends,
    exact,
    floor,
    measured,
    measured_only,
    model,
    only,
    slopes_at,
    tensor,
    trained,
    variance_of,
    weights,
)

GEOMTIME = dde.geometry.GeometryXTime(LINE, dde.geometry.TimeDomain(0, 1))
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


def on_boundary(_, on):
    return on


def at_left(x, on):
    return on and x[0] < 0


def slope(x, u, _):
    return dde.grad.jacobian(u, x)


# NoisyPointSetBC


@pytest.mark.parametrize("values", [Y, 0.5], ids=["array", "scalar"])
@pytest.mark.parametrize("sigma", [0.1, SIGMA, SIGMA[:, None]], ids=["scalar", "(n,)", "(n, 1)"])
def test_residuals_are_those_of_a_point_set(sigma, values):
    outputs = torch.randn(9, 1)
    plain = dde.icbc.PointSetBC(X, values)
    expected = plain.error(None, None, outputs, 2, 8)
    for bc in (measured(sigma, values=values), noisy(plain, sigma)):
        assert_same_bits(bc.error(None, None, outputs, 2, 8), expected)
        np.testing.assert_array_equal(bc.collocation_points(None), X.astype("float32"))


TWO = {"values": np.hstack([Y, 2 * Y]), "component": [0, 2]}
PER_COMPONENT = {
    "number": (0.3, np.full((6, 2), 0.3)),
    "(n,)": (only(2)[:, 0], np.repeat(only(2), 2, 1)),
    "(n, 1)": (only(2), np.repeat(only(2), 2, 1)),
    "(m,)": ([0.3, 0.0], np.tile([0.3, 0.0], (6, 1))),
    "(1, m)": ([[0.0, 0.3]], np.tile([0.0, 0.3], (6, 1))),
    "(n, m)": (only(7, shape=(6, 2)), only(7, shape=(6, 2))),
    "estimates": (
        (SigmaEstimate(0.3, 0.1, 6, "guess"), SigmaEstimate(0.0, 0.1, 6, "guess")),
        np.tile([0.3, 0.0], (6, 1)),
    ),
    "tensor": (torch.tensor([0.3, 0.0], requires_grad=True), np.tile([0.3, 0.0], (6, 1))),
}


@pytest.mark.parametrize("kind", PER_COMPONENT)
@pytest.mark.parametrize("component", [[0, 2], (0, 2)], ids=["list", "tuple"])
def test_several_components(kind, component):
    """Every number of an error stands for the values that it is meant for."""
    sigma, entries = PER_COMPONENT[kind]
    bc = measured(sigma, values=TWO["values"], component=component)
    torch.testing.assert_close(bc.sigma.expand(6, 2), torch.as_tensor(entries).float())
    outputs = torch.randn(6, 3, requires_grad=True)
    plain = dde.icbc.PointSetBC(X, TWO["values"], [0, 2])
    assert_same_bits(bc.error(None, None, outputs, 0, 6), plain.error(None, None, outputs, 0, 6))


@pytest.mark.parametrize("place", [0, 5, 11])
def test_every_value_has_its_own_error(place):
    """An error in one of twelve values: the floor is exact."""
    sigma = only(place, shape=(6, 2))
    m = trained(measured_only(measured(sigma, **TWO), outputs=3), lr=0.0, loss_weights=[2])
    residual = m.net(tensor(X, m))[:, [0, 2]] - tensor(TWO["values"], m)
    assert_close(floor(m), variance_of(m, [(residual, sigma, 2)]))


def test_estimates_of_two_components_go_straight_in():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 2))
    y = np.stack([np.sin(x[:, 0]), x[:, 1] ** 2], 1) + rng.normal(size=(200, 2)) * [0.1, 0.4]
    estimates = estimate_sigma_scattered(x, y)
    given = NoisyPointSetBC(x, y, estimates, component=(0, 1)).sigma
    assert given.shape == (1, 2)
    np.testing.assert_allclose(given[0], [float(s) for s in estimates], rtol=1e-6)
    assert abs(given[0, 0] - 0.1) < 0.02 and abs(given[0, 1] - 0.4) < 0.08
    for bc in (
        NoisyPointSetBC(x, y, "estimate", component=[0, 1]),
        noisy(dde.icbc.PointSetBC(x, y, [0, 1]), "estimate"),
    ):
        np.testing.assert_allclose(bc.sigma, given, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("make", [measured, lambda **o: noisy(dde.icbc.PointSetBC(X, Y, **o), 0.1)])
def test_under_adam_it_is_a_point_set(make, batch_size):
    found = []
    for kind in (make, lambda **options: dde.icbc.PointSetBC(X, Y, **options)):
        np.random.seed(0)  # for the batches
        bc = kind(batch_size=batch_size)
        resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
        m = trained(model(bc, ends()), "adam", callbacks=[resampler] if batch_size else None)
        found.append((weights(m), m.losshistory.loss_train))
    assert_same_bits(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    "sigma", [SIGMA[:5], SIGMA[:5, None], np.ones((6, 2)), np.ones((1, 6)), np.ones((6, 1, 1)), []]
)
def test_an_error_of_the_wrong_shape_is_refused(sigma):
    with pytest.raises(ValueError, match="6 points"):
        measured(sigma)
    with pytest.raises(ValueError, match="6 points"):
        noisy(exact(), sigma)


def test_as_many_points_as_components_leave_a_vector_open():
    with pytest.raises(ValueError, match=r"give \(1, m\) for one per component, or \(n, 1\)"):
        NoisyPointSetBC(X[:2], np.ones((2, 2)), [0.1, 0.2], component=[0, 1])


@pytest.mark.parametrize("entry", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("place", [None, 3], ids=["scalar", "entry"])
def test_a_wrong_error_is_refused(entry, place):
    sigma = entry
    if place is not None:
        sigma = SIGMA.copy()
        sigma[place] = entry
    for make in (measured, lambda s: noisy(exact(), s)):
        with pytest.raises(ValueError, match=f"sigma must be finite and >= 0, got {entry}"):
            make(sigma)
    if place is None:
        with pytest.raises(ValueError, match=f"sigma must be finite and >= 0, got {entry}"):
            noisy(ends(), sigma)


@pytest.mark.parametrize("sigma", [None, [[0.1], [0.1, 0.2]], {}, "0.1", "0,1"])
def test_an_error_that_is_no_number_is_refused(sigma):
    for make in (measured, lambda s: noisy(exact(), s)):
        with pytest.raises(ValueError, match="must be a number"):
            make(sigma)


@pytest.mark.parametrize("given", [{"values": Y[:, 0]}, {"points": X[:, 0]}])
def test_measurements_without_columns_are_refused(given):
    """DeepXDE would compare each value with each."""
    with pytest.raises(ValueError, match=r"become columns by x\[:, None\]"):
        measured(0.1, **given)
    plain = dde.icbc.PointSetBC(**{"points": X, "values": Y, **given})
    with pytest.raises(ValueError, match=r"become columns by x\[:, None\]"):
        noisy(plain, 0.1)


@pytest.mark.parametrize(
    ("shape", "component"),
    [((6, 2), 0), ((1, 6), 0), ((6, 1), [0, 1]), ((5, 1), 0), ((6, 1, 1), 0)],
)
def test_values_of_another_shape_are_refused(shape, component):
    for make in (
        lambda: measured(0.1, values=np.ones(shape), component=component),
        lambda: noisy(dde.icbc.PointSetBC(X, np.ones(shape), component), 0.1),
    ):
        with pytest.raises(ValueError, match=r"values .* a number, \(6, \d\) or \(1, \d\)"):
            make()


@pytest.mark.parametrize("entry", [math.nan, math.inf])
@pytest.mark.parametrize("given", ["points", "values"])
def test_measurements_that_are_no_numbers_are_refused(given, entry):
    wrong = Y.copy()
    wrong[2] = entry
    with pytest.raises(ValueError, match=f"{given} must be finite, but 1 of their 6 numbers"):
        measured(0.1, **{given: wrong})
    plain = dde.icbc.PointSetBC(**{"points": X, "values": Y, given: wrong})
    with pytest.raises(ValueError, match=f"{given} must be finite, but 1 of their 6 numbers"):
        noisy(plain, 0.1)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("values", [0.5, np.full((1, 1), 0.5)])
def test_one_value_for_all_points(values, batch_size):
    m = trained(model(measured(values=values, batch_size=batch_size)), iterations=2)
    given = measured(values=np.full((6, 1), 0.5), batch_size=batch_size)
    assert_same_bits(weights(m), weights(trained(model(given), iterations=2)))


def test_one_value_for_all_points_is_no_column():
    assert measured(0.1, values=np.array([0.4])).values.shape == (1,)
    assert measured(torch.tensor(0.1, dtype=torch.bfloat16)).sigma.shape == (1, 1)


@pytest.mark.parametrize("component", [3, -1, [0, 2], (0, -2)])
@pytest.mark.parametrize("optimizer", ["snr_adam", "adam"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_component_that_the_network_does_not_have_is_refused(component, optimizer, wrapped):
    """DeepXDE would train on an empty mean, NaN."""
    several = not isinstance(component, int)
    values = TWO["values"] if several else Y
    if wrapped:
        plain = dde.icbc.PointSetBC(X, values, list(component) if several else component)
        bc = noisy(plain, 0.1)
    else:
        bc = measured(0.1, values=values, component=component)
    m = measured_only(bc, outputs=2)
    wrong = component[1] if several else component
    with pytest.raises(ValueError, match=rf"component={wrong} of a NoisyPoint.* has 2 output"):
        trained(m, optimizer, iterations=1)


@pytest.mark.parametrize("optimizer", ["snr_adam", "adam"])
def test_residuals_of_each_output_with_each_value_are_refused(optimizer):
    """DeepXDE would train on their mean."""
    row = dde.icbc.PointSetOperatorBC(X, Y, lambda x, u, _: u[:, 0])
    function = dde.icbc.DirichletBC(LINE, lambda x: np.sin(x[:, 0]), on_boundary)
    for plain in (row, function):
        with pytest.raises(ValueError, match=r"has to give columns, \(n, 1\), by y\[:, None\]"):
            trained(model(noisy(plain, 0.1)), optimizer, iterations=1)


# noisy()


class Doubled(dde.icbc.PointSetBC):
    """A user's condition, which knows nothing of aux_var."""

    def error(self, X, inputs, outputs, beg, end):
        return super().error(X, inputs, 2 * outputs, beg, end)


class Squared(dde.icbc.DirichletBC):
    def error(self, X, inputs, outputs, beg, end, aux_var=None):
        return super().error(X, inputs, outputs, beg, end, aux_var) ** 2


class OfNoFamily:
    """All that DeepXDE asks for."""

    def collocation_points(self, X):
        return np.array([[0.25]], dtype="float32")

    def error(self, X, inputs, outputs, beg, end, aux_var=None):
        return outputs[beg:end] - 3 * inputs[beg:end]


CONDITIONS = {
    "PointSetBC": lambda: dde.icbc.PointSetBC(X[:1], Y[:1]),
    "PointSetOperatorBC": lambda: dde.icbc.PointSetOperatorBC(X[:1], Y[:1], slope),
    "DirichletBC": lambda: dde.icbc.DirichletBC(LINE, lambda x: x, at_left),
    "NeumannBC": lambda: dde.icbc.NeumannBC(LINE, lambda x: x, at_left),
    "RobinBC": lambda: dde.icbc.RobinBC(LINE, lambda x, u: u + 1, at_left),
    "OperatorBC": lambda: dde.icbc.OperatorBC(LINE, lambda x, u, _: slope(x, u, _) - u, at_left),
    "PeriodicBC": lambda: dde.icbc.PeriodicBC(LINE, 0, at_left),
    "a subclass of PointSetBC": lambda: Doubled(X[:1], Y[:1]),
    "a subclass of DirichletBC": lambda: Squared(LINE, lambda x: 3, at_left),
    "a class of one's own": OfNoFamily,
}
LEFT = torch.tensor([[-1.0]])


def residual_at_one_point(kind, m):
    """What these conditions compare, written out."""
    x = LEFT.clone().requires_grad_()
    u = m.net(x)
    outward = -slopes_at(m, LEFT)
    first, y = tensor(X[:1], m), tensor(Y[:1], m)
    return {
        "PointSetBC": lambda: m.net(first) - y,
        "PointSetOperatorBC": lambda: slopes_at(m, X[:1]) - y,
        "DirichletBC": lambda: u + 1,
        "NeumannBC": lambda: outward + 1,
        "RobinBC": lambda: outward - u - 1,
        "OperatorBC": lambda: -outward - u,
        "PeriodicBC": lambda: u - m.net(-LEFT),
        "a subclass of PointSetBC": lambda: 2 * m.net(first) - y,
        "a subclass of DirichletBC": lambda: (u - 3) ** 2,
        "a class of one's own": lambda: m.net(torch.tensor([[0.25]])) - 0.75,
    }[kind]()


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("beside", [False, True], ids=["first", "beside others"])
def test_every_kind_of_condition(kind, beside):
    """One residual each: the floor is exact; the loss stays what it was."""
    set_SNR_options(coordinates="own")  # in which the floor can be computed by hand
    plain = CONDITIONS[kind]()
    found = noisy(plain, 0.3)
    assert isinstance(found, type(plain)) and not hasattr(plain, "sigma")
    others = [ends(), exact()] if beside else []
    m = trained(
        model(*others, found), lr=0.0, iterations=2, loss_weights=[1.0] * len(others) + [1, 3]
    )
    assert_close(floor(m), variance_of(m, [(residual_at_one_point(kind, m), 0.3, 3)]))
    assert m.opt.beside_exact
    twin = trained(model(*others, plain), "adam", lr=0.0, iterations=2)
    wanted = np.array(twin.losshistory.loss_train) * ([1.0] * len(others) + [1, 3])
    np.testing.assert_allclose(m.losshistory.loss_train, wanted, rtol=1e-6)
    name = re.escape(f"condition {len(others)} ({type(found).__name__}), mse, sigma 0.3")
    assert re.search(f"noisy: {name}", m.opt.describe())


def test_initial_condition():
    start = dde.icbc.IC(GEOMTIME, lambda x: 0.5, lambda _, on_initial: on_initial)
    data = dde.data.TimePDE(
        GEOMTIME,
        lambda x, u: dde.grad.jacobian(u, x, j=1),
        [noisy(start, 0.3)],
        num_domain=4,
        num_initial=1,
    )
    m = dde.Model(data, dde.nn.FNN([2, 6, 1], "tanh", "Glorot uniform"))
    trained(m, lr=0.0, iterations=2)
    assert len(data.train_x_bc) == 1
    residual = m.net(torch.as_tensor(data.train_x_bc)) - 0.5
    assert_close(floor(m), variance_of(m, [(residual, 0.3, 1)]))


def test_the_given_condition_stays_as_it_is():
    plain = dde.icbc.PointSetBC(X, TWO["values"], (0, 2), batch_size=2)
    before = dict(vars(plain))
    found = noisy(plain, [0.1, 0.2])
    assert type(plain) is dde.icbc.PointSetBC and vars(plain) == before
    assert found is not plain and found.component == [0, 2]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ["NoisyPointSetBC", "PointSetBC", "a subclass", "of no family"])
def test_copies_know_their_error(how, kind):
    found = {
        "NoisyPointSetBC": lambda: measured(0.3),
        "PointSetBC": lambda: noisy(dde.icbc.PointSetBC(X, Y), 0.3),
        "a subclass": lambda: noisy(Doubled(X, Y), SIGMA),
        "of no family": lambda: noisy(OfNoFamily(), 0.3),
    }[kind]()
    twin = COPIES[how](found)
    assert twin is not found and type(twin) is type(found)
    assert_same_bits(twin.sigma, found.sigma)
    first, second = (trained(model(c, ends())) for c in (found, twin))
    assert_same_bits([*weights(first), *floor(first)], [*weights(second), *floor(second)])


@pytest.mark.parametrize("how", ["copy", "deepcopy"])
def test_copies_of_conditions_with_functions(how):
    """Pickled they cannot be: DeepXDE keeps functions within functions in them."""
    twin = COPIES[how](noisy(ends(), 0.3))
    assert isinstance(twin, dde.icbc.DirichletBC) and twin.sigma == 0.3
    a, b = (trained(model(c)) for c in (twin, noisy(ends(), 0.3)))
    assert_same_bits(weights(a), weights(b))


@pytest.mark.parametrize("trains", [False, True], ids=["compiled", "trained"])
@pytest.mark.parametrize("name", ["snr_adam", "snr_soap"])
def test_data_can_be_copied(name, trains):
    m, twin = model(measured()), model(measured())
    m.compile(name, lr=1e-3, verbose=0)
    if trains:
        m.train(iterations=2, verbose=0)
    twin.data = copy.deepcopy(m.data)
    (bc,) = twin.data.bcs
    assert_same_bits((bc.values, bc.sigma), (m.data.bcs[0].values, m.data.bcs[0].sigma))
    assert bc is not m.data.bcs[0]
    assert_same_bits(weights(trained(twin, name)), weights(trained(model(measured()), name)))


def test_a_function_has_one_error():
    for sigma in ([0.1, 0.2], SIGMA, "estimate"):
        with pytest.raises(ValueError, match=r"give one number|Give a number"):
            noisy(ends(), sigma)


def test_what_cannot_be_noisy_is_refused():
    with pytest.raises(TypeError, match="takes a DeepXDE condition"):
        noisy(Y, 0.1)
    for known in (measured(), noisy(ends(), 0.1)):
        with pytest.raises(ValueError, match=f"{type(known).__name__} knows its error already"):
            noisy(known, 0.1)


def test_an_error_function_that_was_replaced_is_refused():
    """Its residuals could not be told from others."""
    plain, known = exact(), measured()
    for condition in (plain, known):
        condition.error = lambda x, inputs, outputs, beg, end, aux=None: outputs[beg:end] ** 2
    with pytest.raises(ValueError, match=r"had its error\(\) replaced"):
        noisy(plain, 0.1)
    with pytest.raises(
        RuntimeError, match=r"declared noisy loss .*condition 0 \(NoisyPointSetBC\)"
    ):
        trained(model(known), iterations=1)


def test_an_error_declared_twice_is_refused():
    from sciml_snr import NoisyLoss

    for optimizer in ("snr_adam", "adam"):
        with pytest.raises(ValueError, match=r"condition 1 \(NoisyPointSetBC\) is declared twice"):
            model(ends(), measured()).compile(
                optimizer, lr=1e-3, loss=["MSE", "MSE", NoisyLoss(0.1)]
            )


def test_noise_is_known_under_other_optimizers_and_forgotten_with_it():
    m = model(measured())
    m.compile("adam", lr=1e-3, verbose=0)
    assert noise_of(m) is not None
    m.data.bcs[:] = [exact()]
    m.compile("adam", lr=1e-3, verbose=0)
    assert noise_of(m) is None


def test_no_randomness_in_one_point():
    """What the tests of this folder rest on: the draw's square does not depend on its sign."""
    found = []
    for seed in range(4):
        m = model(measured(**ONE_POINT))
        m.compile("snr_adam", lr=0.0, verbose=0)
        torch.manual_seed(seed)
        m.train(iterations=1, verbose=0)
        found.append(floor(m))
    for other in found[1:]:
        assert_same_bits(other, found[0])


@pytest.mark.parametrize("optimizer", ["snr_adam", "snr_gn"])
def test_a_condition_without_points_is_refused_by_name(optimizer: str) -> None:
    """The mean of its losses would be NaN, and DeepXDE's training would end in silence."""
    time = dde.geometry.TimeDomain(0, 1)
    start = dde.icbc.IC(time, lambda t: 1.0, lambda t, on_initial: on_initial)
    measured = NoisyPointSetBC(np.linspace(0.1, 1, 5)[:, None], np.ones((5, 1)), 0.1)

    def model(num_boundary: int) -> dde.Model:
        data = dde.data.PDE(
            time,
            lambda t, u: dde.grad.jacobian(u, t),
            [measured, start],
            num_domain=8,
            num_boundary=num_boundary,
        )
        return dde.Model(data, dde.nn.FNN([1, 4, 1], "tanh", "Glorot normal"))

    with pytest.raises(ValueError, match=r"Condition 2 of 2 \(IC\) has no points.*num_boundary"):
        model(0).compile(optimizer, lr=1e-3)
    model(2).compile(optimizer, lr=1e-3, verbose=0)
