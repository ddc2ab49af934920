"""``compile("snr_adam")``, ``"snr_soap"``: found by DeepXDE, treated like its own, told options."""

import copy
import importlib
import inspect
import math
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import deepxde as dde
import numpy as np
import pytest
import torch

import sciml_snr
from sciml_snr import SNRSOAP, GateStats, NoisyPointSetBC, SNRAdam
from sciml_snr.dde import SNR_options, register, registration, set_SNR_options
from sciml_snr.dde.registration import EXACT_GATES, HINT_AFTER, OPTIMIZERS, STREAM_GATE
from tests.cases import assert_same_bits


def poisson(coefficient=1.0, regularization=None):
    """-c u'' = pi^2 sin(pi x) on [-1, 1] with u = 0 at its ends, and u measured where it is 1."""

    def residual(x, u):
        return -coefficient * dde.grad.hessian(u, x) - math.pi**2 * torch.sin(math.pi * x)

    line = dde.geometry.Interval(-1, 1)
    ends = dde.icbc.DirichletBC(line, lambda x: 0, lambda _, on_boundary: on_boundary)
    measured = dde.icbc.PointSetBC(np.array([[0.5]]), np.array([[1.0]]))
    data = dde.data.PDE(line, residual, [ends, measured], num_domain=16, num_boundary=2)
    net = dde.nn.FNN([1, 12, 12, 1], "tanh", "Glorot uniform", regularization)
    return dde.Model(data, net)


def trained(optimizer, iterations=50, coefficient=1.0, regularization=None, lr=1e-2, **options):
    """A model compiled and trained from the same start every time."""
    torch.manual_seed(0)
    model = poisson(coefficient, regularization)
    if isinstance(coefficient, torch.Tensor):
        options["external_trainable_variables"] = coefficient
    model.compile(optimizer, lr=lr, verbose=0, **options)
    model.train(iterations=iterations, verbose=0)
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def losses(model):
    return [float(np.sum(loss)) for loss in model.losshistory.loss_train]


# Finding the names


MINIMAL = """
line = dde.geometry.Interval(-1, 1)
net = dde.nn.FNN([1, 4, 1], "tanh", "Glorot uniform")
model = dde.Model(dde.data.Function(line, lambda x: x, 4, 4), net)
model.compile("snr_adam", lr=1e-3)
model.train(iterations=2)
print("trained with", type(model.opt).__name__, model.opt.param_groups[0]["gate"])
"""

IMPORTS = {
    "sciml_snr first": "import sciml_snr\nimport deepxde as dde",
    "deepxde first": "import deepxde as dde\nimport sciml_snr",
    "deepxde.optimizers first": "import deepxde.optimizers\nimport sciml_snr\ndde = deepxde",
    "options before deepxde": (
        "import sciml_snr\nsciml_snr.set_SNR_options(gate='hard')\nimport deepxde as dde"
    ),
}


def run_python(code):
    """Run code in a new interpreter; what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "DDE_BACKEND": "pytorch"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("order", IMPORTS)
def test_any_order_of_imports_will_do(order):
    gate = "hard" if "options" in order else "soft"
    assert f"trained with SNRAdam {gate}\n" in run_python(IMPORTS[order] + MINIMAL)


def test_sciml_snr_alone_does_not_import_deepxde():
    code = "import sys, sciml_snr; print([m for m in sys.modules if m.startswith('deepxde')])"
    assert run_python(code).strip() == "[]"


def test_registering_or_importing_again_changes_nothing():
    before = dde.optimizers.get
    register(dde)
    importlib.reload(sciml_snr)
    assert dde.optimizers.get is before


def test_deepxde_shows_its_own_signature():
    names = list(inspect.signature(dde.optimizers.get).parameters)
    assert names == ["params", "optimizer", "learning_rate", "decay", "weight_decay"]


def test_options_are_found_where_deepxde_keeps_its_own():
    assert dde.optimizers.set_SNR_options is sciml_snr.set_SNR_options is set_SNR_options
    assert dde.optimizers.SNR_options is SNR_options


# Treated like DeepXDE's own


def test_loss_falls():
    start, *_, end = losses(trained("snr_adam", 300))
    assert end < start / 10


class LearningRates(dde.callbacks.Callback):
    def on_train_begin(self):
        self.rates = []

    def on_epoch_end(self):
        self.rates.append([group["lr"] for group in self.model.opt.param_groups])


def learning_rates(optimizer, decay):
    coefficient = dde.Variable(1.0)
    model = poisson(coefficient)
    model.compile(
        optimizer, lr=1e-3, decay=decay, external_trainable_variables=coefficient, verbose=0
    )
    rates = LearningRates()
    model.train(iterations=8, callbacks=[rates], verbose=0)
    return rates.rates


@pytest.mark.parametrize(
    "decay",
    [
        ("step", 3, 0.5),
        ("cosine", 10, 1e-4),
        ("inverse time", 3, 0.5),
        ("exponential", 0.9),
        ("lambda", lambda step: 1 / (1 + step**2)),
    ],
    ids=lambda decay: decay[0],
)
def test_learning_rate_decays_as_for_adam(decay):
    rates = learning_rates("snr_adam", decay)
    assert rates == learning_rates("adam", decay)
    assert rates[-1][0] < 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("external", [False, True], ids=["", "external"])
def test_every_name_brings_its_optimizer(name, external):
    coefficient = dde.Variable(2.0) if external else 2.0
    optimizer = trained(name, 3, coefficient).opt
    assert type(optimizer) is {"snr_adam": SNRAdam, "snr_soap": SNRSOAP}[name]
    gates = [group["gate"] for group in optimizer.param_groups]
    assert gates == ([STREAM_GATE["gate"], "none"] if external else [STREAM_GATE["gate"]])


def test_soap_lowers_the_loss():
    start, *_, end = losses(trained("snr_soap", 300))
    assert end < start / 10


def test_unknown_decay_is_deepxdes_error():
    with pytest.raises(NotImplementedError, match="sideways learning rate scheduler"):
        poisson().compile("snr_adam", lr=1e-3, decay=("sideways", 1))


@pytest.mark.parametrize("external", [False, True], ids=["", "external"])
@pytest.mark.parametrize("regularization", [None, ["l2", 1e-3]], ids=["", "l2"])
@pytest.mark.parametrize("loss_weights", [None, [1, 10, 100]], ids=["", "loss_weights"])
def test_without_gate_it_is_adam_bit_for_bit(external, regularization, loss_weights):
    set_SNR_options(gate="none")
    found = []
    for optimizer in ("adam", "snr_adam"):
        coefficient = dde.Variable(2.0) if external else 2.0
        model = trained(
            optimizer,
            coefficient=coefficient,
            regularization=regularization,
            loss_weights=loss_weights,
        )
        found.append((weights(model), float(torch.as_tensor(coefficient).detach())))
    (adam_weights, adam_coefficient), (snr_weights, snr_coefficient) = found
    assert torch.equal(snr_weights, adam_weights)
    assert snr_coefficient == adam_coefficient
    assert (snr_coefficient != 2.0) == external


@pytest.mark.parametrize("change", [{"regularization": ["l2", 1e-3]}, {"loss_weights": [1, 9, 9]}])
def test_regularizer_and_loss_weights_act(change):
    assert not torch.equal(weights(trained("snr_adam", **change)), weights(trained("snr_adam")))


def test_gate_acts():
    gated = weights(trained("snr_adam"))
    set_SNR_options(gate="none")
    assert not torch.equal(gated, weights(trained("snr_adam")))


def test_float64(float64):
    model = trained("snr_adam", 300)
    start, *_, end = losses(model)
    assert end < start / 10
    dtypes = {s[key].dtype for s in model.opt.state.values() for key in s if key != "step"}
    assert dtypes == {weights(model).dtype} == {torch.float64}


def test_mixed_precision(mixed_precision):
    line = dde.geometry.Interval(-1, 1)
    data = dde.data.Function(line, lambda x: np.sin(3 * x), 16, 16)
    model = dde.Model(data, dde.nn.FNN([1, 20, 20, 1], "tanh", "Glorot uniform"))
    model.compile("snr_adam", lr=1e-2, verbose=0)
    model.train(iterations=150, verbose=0)
    start, *_, end = losses(model)
    assert end < start / 10


def test_lbfgs_in_between(short_lbfgs):
    model = trained("snr_adam", 100)
    model.compile("L-BFGS", verbose=0)
    model.train(verbose=0)
    model.compile("snr_adam", lr=1e-4, verbose=0)
    model.train(iterations=50, verbose=0)
    start, after_snr, before_lbfgs, after_lbfgs, *_, end = losses(model)
    assert start > after_snr == before_lbfgs > after_lbfgs > end


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("rmsprop", torch.optim.RMSprop),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("L-BFGS", torch.optim.LBFGS),
    ],
)
def test_other_optimizers_are_as_before(name, kind):
    model = poisson(regularization=["l2", 1e-3] if name == "adamw" else None)
    model.compile(name, lr=None if name == "L-BFGS" else 1e-3)
    assert type(model.opt) is kind


def test_adamw_without_weight_decay_is_still_refused():
    with pytest.raises(ValueError, match="AdamW optimizer requires non-zero weight decay"):
        poisson().compile("adamw", lr=1e-3)


def test_unknown_names_are_still_refused():
    with pytest.raises(NotImplementedError, match="snr_madam to be implemented"):
        poisson().compile("snr_madam", lr=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_must_be_given(name):
    with pytest.raises(ValueError, match=rf"^No learning rate for {name}\.$"):
        poisson().compile(name)


def test_an_instance_does_as_well():
    model = poisson()
    optimizer = SNRAdam(model.net.parameters(), lr=1e-2, gate="hard")
    model.compile(optimizer, decay=("step", 50, 0.5), verbose=0)
    model.train(iterations=100, verbose=0)
    assert model.opt is optimizer
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 4)
    start, *_, end = losses(model)
    assert end < start / 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_save_and_restore(tmp_path, name):
    model = trained(name, 20)
    path = model.save(str(tmp_path / "model"))
    torch.manual_seed(1)
    restored = poisson()
    restored.compile(name, lr=1e-2, verbose=0)
    restored.restore(path)
    saved, loaded = model.opt.state_dict(), restored.opt.state_dict()
    assert loaded["param_groups"] == saved["param_groups"]
    torch.testing.assert_close(loaded["state"], saved["state"], rtol=0, atol=0)
    for m in (model, restored):
        m.train(iterations=20, verbose=0)
    assert torch.equal(weights(restored), weights(model))


# Compiled one after another


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("sigma", [None, 0.1], ids=["stream", "label"])
def test_adam_afterwards_is_as_without_us(name, sigma):
    """From the same weights: after a learning rate of 0."""
    torch.manual_seed(0)
    model, untouched = poisson(), poisson()
    untouched.net.load_state_dict(model.net.state_dict())
    set_SNR_options(sigma=sigma)
    model.compile(name, lr=0.0, verbose=0)
    model.train(iterations=3, verbose=0)
    for m in (model, untouched):
        m.compile("adam", lr=1e-2, verbose=0)
        m.train(iterations=30, verbose=0)
    assert type(model.opt) is torch.optim.Adam
    assert_same_bits(weights(model), weights(untouched))
    assert losses(model)[-1] == losses(untouched)[-1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiling_twice_is_compiling_once(name):
    set_SNR_options(sigma=0.1)
    found = []
    for times in (1, 2):
        torch.manual_seed(0)
        model = poisson()
        for _ in range(times):
            model.compile(name, lr=1e-2, verbose=0)
        torch.manual_seed(1)
        model.train(iterations=10, verbose=0)
        found.append((weights(model), list(model.opt.floor.values())))
    assert_same_bits(found[1], found[0])


def test_models_with_common_data_have_floors_of_their_own():
    set_SNR_options(sigma=0.1)
    models = poisson(), poisson()
    models[1].data = models[0].data
    for model in models:
        model.compile("snr_adam", lr=1e-2, verbose=0)
    for passes in (2, 4):
        for model in models:
            model.train(iterations=2, verbose=0)
            assert set(model.opt.floor.state_dict()["passes"]) == {passes}
    first, second = (torch.cat([v.flatten() for v in m.opt.floor.values()]) for m in models)
    assert not torch.equal(first, second)


# The hint


@pytest.fixture
def not_hinted(monkeypatch):
    monkeypatch.setattr(registration, "_hinted", False)


def hints(model, iterations=HINT_AFTER + 1, name="snr_adam", callbacks=None):
    """How often a training says that the batch does not change."""
    model.compile(name, lr=1e-3, verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(iterations=iterations, callbacks=callbacks, verbose=0)
    return sum("data have not changed" in str(w.message) for w in caught)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hint_comes_once_and_not_before_its_time(not_hinted, name):
    assert hints(poisson(), HINT_AFTER - 1, name) == 0
    assert hints(poisson(), 3 * HINT_AFTER, name) == 1
    assert hints(poisson(), 2 * HINT_AFTER, name) == 0


def test_hint_tells_what_to_do(not_hinted):
    model = poisson()
    model.compile("snr_adam", lr=1e-3, verbose=0)
    with pytest.warns(UserWarning, match=r"NoisyPointSetBC.*set_SNR_options\(sigma"):
        model.train(iterations=HINT_AFTER + 1, verbose=0)


@pytest.mark.parametrize(
    "options", [{"floor": "stream"}, {"sigma": 0.1}, {"gate": "none"}], ids=lambda o: next(iter(o))
)
def test_no_hint_where_something_was_said(not_hinted, options):
    set_SNR_options(**options)
    assert hints(poisson()) == 0


def test_no_hint_where_a_measurement_knows_its_error(not_hinted):
    model = poisson()
    model.data.bcs[1] = NoisyPointSetBC(np.array([[0.5]]), np.array([[1.0]]), 0.1)
    assert hints(model) == 0


@pytest.mark.parametrize("period", [1, 10])
def test_no_hint_where_points_are_drawn_anew(not_hinted, period):
    """Of measurements they are not, whatever happens to the equation's points."""
    resampler = dde.callbacks.PDEPointResampler(period=period)
    unmeasured, batches = poisson(), poisson()
    unmeasured.data.bcs.pop()
    batches.data.bcs[1] = dde.icbc.PointSetBC(*[np.array([[0.5], [0.4]])] * 2, batch_size=1)
    for model in (unmeasured, batches):
        assert hints(model, callbacks=[resampler]) == 0
    assert hints(poisson(), callbacks=[resampler]) == 1


def test_no_hint_without_data(not_hinted):
    forward = poisson()
    forward.data.bcs.pop()
    forward.data.train_x_bc = None
    forward.data.resample_train_points()
    assert hints(forward) == 0


def test_hint_for_supervised_data(not_hinted):
    line = dde.geometry.Interval(-1, 1)
    net = dde.nn.FNN([1, 4, 1], "tanh", "Glorot uniform")
    assert hints(dde.Model(dde.data.Function(line, np.square, 4, 4), net)) == 1


def test_no_hint_for_other_optimizers(not_hinted):
    assert hints(poisson(), name="adam") == 0


def test_hint_leaves_copies_and_training_alone(not_hinted):
    model = poisson()
    model.compile("snr_adam", lr=1e-3, verbose=0)
    copy.deepcopy(model.opt)
    with pytest.warns(UserWarning, match="data have not changed"):
        model.train(iterations=HINT_AFTER + 1, verbose=0)
    assert not model.opt._optimizer_step_post_hooks


# External trainable variables


def test_external_variables_are_trained_and_not_gated():
    coefficient = dde.Variable(2.0)
    optimizer = trained("snr_adam", coefficient=coefficient).opt
    assert [group["gate"] for group in optimizer.param_groups] == ["soft", "none"]
    assert optimizer.gate_stats(1) == GateStats(mean_q=1.0, open_fraction=1.0, numel=1)
    assert optimizer.gate_stats(0).mean_q < 1
    assert coefficient.item() != 2.0


def test_external_variables_are_gated_on_demand():
    set_SNR_options(gate_external=True)
    optimizer = trained("snr_adam", coefficient=dde.Variable(2.0)).opt
    assert [group["gate"] for group in optimizer.param_groups] == ["soft", "soft"]
    assert optimizer.gate_stats(1).mean_q < 1


@pytest.mark.parametrize("as_list", [False, True])
def test_one_external_variable_needs_no_list(as_list):
    coefficient = dde.Variable(2.0)
    model = poisson(coefficient)
    variables = [coefficient] if as_list else coefficient
    model.compile("snr_adam", lr=1e-3, external_trainable_variables=variables)
    (found,) = model.opt.param_groups[1]["params"]
    assert found is coefficient


def test_l2_regularizer_is_adams_and_leaves_external_variables_alone():
    model = trained("snr_adam", 1, dde.Variable(2.0), regularization=["l2", 1e-3])
    network, external = model.opt.param_groups
    assert (network["weight_decay"], external["weight_decay"]) == (1e-3, 0)
    assert not network["decoupled_weight_decay"]


def test_a_network_of_two_parameters_is_gated():
    """Two parameters are not to be taken for two groups."""
    model = poisson()
    model.net = dde.nn.FNN([1, 1], "tanh", "Glorot uniform")
    model.compile("snr_adam", lr=1e-3)
    (group,) = model.opt.param_groups
    assert (group["gate"], len(group["params"])) == ("soft", 2)


# Options


ALL_OTHER = dict(
    gate="snr",
    alpha="finite",
    lambd=2.0,
    z=1.5,
    sigma=0.1,
    floor="stream",
    floor_every=3,
    rho=0.9,
    warmup_steps=7,
    rise_steps=11,
    discrepancy=True,
    betas=(0.8, 0.99),
    eps=1e-6,
    gate_eps=1e-20,
    batch_size=8,
    data_size=80,
    nonfinite="skip",
    gate_external=True,
    basis="gradient",
    shampoo_beta=0.5,
    precondition_frequency=3,
    max_precondition_dim=16,
)


OURS = ("sigma", "floor", "floor_every", "gate_external")
"""The options that are not the optimizer's."""


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_defaults_are_those_of_the_optimizer():
    """None: what goes with the floor."""
    options = defaults(set_SNR_options)
    assert [options.pop(name) for name in OURS] == [None, "auto", 1, False]
    assert {options.pop(name) for name in STREAM_GATE} == {None}
    assert set(EXACT_GATES) == set(OPTIMIZERS)
    assert {frozenset(gate) for gate in EXACT_GATES.values()} == {frozenset(STREAM_GATE)}
    own = {**defaults(SNRAdam.__init__), **defaults(SNRSOAP.__init__)}
    assert {**STREAM_GATE, **options} == {name: own[name] for name in (*STREAM_GATE, *options)}


def test_gate_not_given_is_the_floors_own():
    set_SNR_options(lambd=2.0)
    group = trained("snr_adam", 1).opt.param_groups[0]
    assert {name: group[name] for name in STREAM_GATE} == {**STREAM_GATE, "lambd": 2.0}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_option_reaches_the_optimizer(optimizer):
    set_SNR_options(**ALL_OTHER)
    group = trained(optimizer, 1).opt.param_groups[0]
    for name, default in defaults(set_SNR_options).items():
        assert ALL_OTHER[name] != default, name
        if optimizer != "snr_soap" and name in registration.BASIS_OPTIONS:
            assert name not in group
        elif name not in OURS:
            assert group[name] == ALL_OTHER[name], name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_alpha_goes_before_a_default_z(name):
    set_SNR_options(alpha=25.0, sigma=0.1)
    group = trained(name, 1).opt.param_groups[0]
    expected = {**EXACT_GATES[name], "alpha": 25.0, "z": None}
    assert {option: group[option] for option in STREAM_GATE} == expected


def test_options_not_given_go_back_to_their_defaults():
    set_SNR_options(**ALL_OTHER)
    set_SNR_options(rho=0.5)
    assert SNR_options == {**defaults(set_SNR_options), "rho": 0.5}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_of_numpy_are_as_good(tmp_path, name):
    """And can be restored."""
    found = []
    for lr, number, whole in ((0.01, float, int), (np.float64(0.01), np.float64, np.int64)):
        betas = number(0.8), number(0.99)
        set_SNR_options(z=number(2), betas=betas, floor_every=whole(2), sigma=number(0.1))
        model = trained(name, 5, lr=lr, regularization=["l2", number(1e-3)])
        found.append(weights(model))
        path = model.save(str(tmp_path / "model"))
        restored = poisson(regularization=["l2", number(1e-3)])
        restored.compile(name, lr=np.float32(1e-3), verbose=0)
        restored.restore(path)
        assert restored.opt.param_groups[0]["lr"] == 0.01
    assert torch.equal(*found)


def test_options_leave_a_compiled_model_alone():
    model = trained("snr_adam", 1)
    set_SNR_options(gate="hard")
    assert model.opt.param_groups[0]["gate"] == "soft"


NONSENSE = {
    "gate": ["open", 3, ["soft"]],
    "alpha": [-1, math.nan, math.inf, "stale", "finite", [1.0]],
    "lambd": [-1, math.nan, "1"],
    "z": [-1, math.nan, math.inf, "3"],
    "sigma": [-0.1, math.nan, math.inf, [None, -0.1], (0.1, math.nan), np.array([[0.1], [-1]])],
    "floor": ["labels", None, 1, ["label"]],
    "floor_every": [0, -1, 1.5, None, "2"],
    "rho": [1, -0.1, math.nan, None],
    "warmup_steps": [-1, 1.5, "3"],
    "rise_steps": [-1, 1.5, "3"],
    "discrepancy": [1, "yes"],
    "betas": [(0.9,), (0.9, 1.0), (-1, 0.9), 0.9, None, (0.9, math.nan), ("a", "b"), "ab"],
    "eps": [-1e-8, None, math.inf],
    "gate_eps": [-1, None, "small"],
    "batch_size": [0, -3, 1.5, "8"],
    "data_size": [0, -3, 1.5, "80"],
    "nonfinite": ["ignore", None, True],
    "gate_external": [1, None, "yes"],
    "basis": ["own", None, 1],
    "shampoo_beta": [1, -0.1, None, math.nan],
    "precondition_frequency": [0, 1.5, None],
    "max_precondition_dim": [0, "64", None],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NONSENSE.items() for value in values]
)
def test_nonsense_is_refused_by_name_and_changes_nothing(name, value):
    assert set(NONSENSE) == set(SNR_options)
    set_SNR_options(rho=0.5)
    before = dict(SNR_options)
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        set_SNR_options(**{"eps": 3.0, name: value})
    assert before == SNR_options


@pytest.mark.parametrize("sizes", [{}, {"batch_size": 8}, {"batch_size": 8, "data_size": 8}])
def test_finite_alpha_needs_sizes_that_make_sense(sizes):
    with pytest.raises(ValueError, match="batch_size"):
        set_SNR_options(alpha="finite", **sizes)


# Other backends


class Call(Exception):
    """The fake below was reached."""


def jax_get(optimizer, learning_rate=None, decay=None):
    raise Call(optimizer)


def compat_v1_get(loss, optimizer, learning_rate=None, decay=None):
    raise Call(optimizer)


def paddle_get(params, optimizer, learning_rate=None, decay=None, weight_decay=None):
    raise Call(optimizer)


BACKENDS = {
    "jax": (jax_get, ()),
    "tensorflow": (jax_get, ()),
    "tensorflow.compat.v1": (compat_v1_get, (torch.ones(2),)),
    "paddle": (paddle_get, ([torch.ones(2)],)),
}


@pytest.fixture(params=BACKENDS)
def other_backend(request, monkeypatch):
    """A backend's name, and ``get`` as it is called there with a name, after registration."""
    original, leading = BACKENDS[request.param]
    monkeypatch.setattr(dde.backend, "backend_name", request.param)
    model = SimpleNamespace(compile=lambda self, optimizer: None)
    fake = SimpleNamespace(optimizers=SimpleNamespace(get=original), Model=model)
    register(fake)

    def get(name):
        return fake.optimizers.get(*leading, name, learning_rate=1e-3, decay=None)

    return request.param, get


def test_other_backends_are_told_how_to_switch(other_backend):
    backend, get = other_backend
    with pytest.raises(RuntimeError, match="DDE_BACKEND=pytorch") as error:
        get("snr_adam")
    assert f'"{backend}"' in str(error.value)
    assert "python -m deepxde.backend.set_default_backend pytorch" in str(error.value)


def test_other_backends_keep_their_own_optimizers(other_backend):
    _, get = other_backend
    with pytest.raises(Call, match=r"^adam$"):
        get("adam")
