"""``compile("snr_adam")``, ``"snr_soap"``: found by DeepXDE, treated like its own, told options."""

import copy
import importlib
import inspect
import math
import os
import pickle
import subprocess
import sys
import warnings
from types import SimpleNamespace

import deepxde as dde
import numpy as np
import pytest
import torch

import sciml_snr
from sciml_snr import SNRSOAP, Gate, GateStats, NoisyLoss, NoisyPointSetBC, SNRAdam, noisy
from sciml_snr.deepxde import SNR_options, noise_of, register, set_SNR_options
from sciml_snr.deepxde.compile import HINT_AFTER, OPTIMIZERS
from sciml_snr.deepxde.points import EQUATION_POINTS
from sciml_snr.gate import BESIDE_EXACT, DATA_ALONE, STREAM
from tests.cases import assert_same_bits
from tests.deepxde.models import (
    X,
    Y,
    assert_close,
    ends,
    exact,
    exact_variance,
    floor,
    gate,
    measured,
    measured_only,
    model,
    only,
    supervised,
)
from tests.deepxde.models import trained as train
from tests.deepxde.models import weights as tensors


def poisson(coefficient=1.0, regularization=None, sigma=None):
    """-c u'' = pi^2 sin(pi x) on [-1, 1] with u = 0 at its ends, and u measured where it is 1."""

    def residual(x, u):
        return -coefficient * dde.grad.hessian(u, x) - math.pi**2 * torch.sin(math.pi * x)

    line = dde.geometry.Interval(-1, 1)
    zero = dde.icbc.DirichletBC(line, lambda x: 0, lambda _, on_boundary: on_boundary)
    value = dde.icbc.PointSetBC(np.array([[0.5]]), np.array([[1.0]]))
    if sigma is not None:
        value = noisy(value, sigma)
    data = dde.data.PDE(line, residual, [zero, value], num_domain=16, num_boundary=2)
    net = dde.nn.FNN([1, 12, 12, 1], "tanh", "Glorot uniform", regularization)
    return dde.Model(data, net)


def trained(
    optimizer,
    iterations=50,
    coefficient=1.0,
    regularization=None,
    lr=1e-2,
    sigma=None,
    **options,
):
    """A model compiled and trained from the same start every time."""
    torch.manual_seed(0)
    model = poisson(coefficient, regularization, sigma)
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
print("trained with", type(model.opt).__name__)
print(model.opt.describe())
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
    form = "hard" if "options" in order else "soft"
    found = run_python(IMPORTS[order] + MINIMAL)
    assert "trained with SNRAdam\n" in found and f"gate: {form}, alpha = 1\n" in found


@pytest.mark.parametrize("name", ["sciml_snr.noisy", "sciml_snr.deepxde.monitors"])
def test_parts_may_come_before_deepxde(name):
    code = f"import sciml_snr, importlib\n{{}}\nimport deepxde as dde{MINIMAL}"
    part = name.endswith("noisy")
    use = "sciml_snr.noisy" if part else f"importlib.import_module({name!r})"
    assert "trained with SNRAdam\n" in run_python(code.format(use))


def test_sciml_snr_alone_does_not_import_deepxde():
    code = "import sys, sciml_snr; print([m for m in sys.modules if m.startswith('deepxde')])"
    assert run_python(code).strip() == "[]"


PATCHES = """
import sys, types
import deepxde

def snapshot():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "deepxde":
            for key, value in vars(module).items():
                if isinstance(value, types.ModuleType) or key.startswith("__"):
                    continue
                found[name, key] = value
                if isinstance(value, type) and value.__module__.startswith("deepxde"):
                    for attribute, own in vars(value).items():
                        if attribute not in ("__dict__", "__weakref__", "__abstractmethods__"):
                            found[value.__module__, value.__name__, attribute] = own
    return found

before = snapshot()
import sciml_snr, sciml_snr.deepxde, sciml_snr.deepxde.monitors
sciml_snr.MemorizationMonitor, sciml_snr.noisy
after = snapshot()
changed = [k for k in before.keys() | after.keys() if before.get(k) is not after.get(k)]
print(sorted(changed))
"""


def test_two_things_of_deepxde_are_replaced():
    """And two names of ours are to be found beside its own."""
    assert eval(run_python(PATCHES).splitlines()[-1]) == [
        ("deepxde.model", "Model", "compile"),
        ("deepxde.optimizers", "SNR_options"),
        ("deepxde.optimizers", "get"),
        ("deepxde.optimizers", "set_SNR_options"),
    ]


def test_registering_or_importing_again_changes_nothing():
    before = dde.optimizers.get, dde.Model.compile
    register(dde)
    importlib.reload(sciml_snr)
    assert (dde.optimizers.get, dde.Model.compile) == before


def test_deepxde_shows_its_own_signature():
    names = list(inspect.signature(dde.optimizers.get).parameters)
    assert names == ["params", "optimizer", "learning_rate", "decay", "weight_decay"]
    assert list(inspect.signature(dde.Model.compile).parameters)[:4] == [
        "self",
        "optimizer",
        "lr",
        "loss",
    ]


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
    moments = [optimizer.moments(group["params"][0]) for group in optimizer.param_groups]
    assert moments[0].gate == STREAM and moments[0].is_stream
    assert [own.gate.form for own in moments[1:]] == (["none"] if external else [])


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
    keys = ("exp_avg", "exp_avg_sq", "exp_grad_var")
    dtypes = {model.opt.state[p][key].dtype for p in model.net.parameters() for key in keys}
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
    with pytest.raises(NotImplementedError, match="nadam to be implemented"):
        poisson().compile("nadam", lr=1e-3)


NEARLY = {
    "snr_adam": ["SNRAdam", "snr-adam", "snr_adm", "SNR_ADAM", "snr adam", "snradam", "snr_adamw"],
    "snr_soap": ["SNRSOAP", "snr-soap", "snr_sope", "SNR_SOAP"],
}


@pytest.mark.parametrize(
    ("meant", "written"), [(meant, name) for meant, names in NEARLY.items() for name in names]
)
def test_names_that_are_nearly_right_are_refused_with_a_question(meant, written):
    with pytest.raises(ValueError, match=f'no optimizer .{written}.: did you mean "{meant}"'):
        poisson().compile(written, lr=1e-3)


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
@pytest.mark.parametrize("sigma", [None, 0.1], ids=["stream", "label"])
def test_save_and_restore(tmp_path, name, sigma):
    model = trained(name, 20, sigma=sigma)
    path = model.save(str(tmp_path / "model"))
    torch.manual_seed(1)
    restored = poisson(sigma=sigma)
    restored.compile(name, lr=1e-2, verbose=0)
    restored.restore(path)
    saved, loaded = model.opt.state_dict(), restored.opt.state_dict()
    assert loaded["param_groups"] == saved["param_groups"]
    torch.testing.assert_close(loaded["state"], saved["state"], rtol=0, atol=0)
    for m in (model, restored):
        m.train(iterations=20, verbose=0)
    assert torch.equal(weights(restored), weights(model))


# Which floor, which gate


def function():
    data = dde.data.Function(dde.geometry.Interval(-1, 1), lambda x: np.sin(3 * x), 8, 8)
    return dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))


KINDS = {
    "equation": (poisson, {}),
    "noisy condition": (lambda: poisson(sigma=0.1), {}),
    "noisy equation": (poisson, {"loss": [NoisyLoss(0.3), "MSE", "MSE"]}),
    "noisy condition by its loss": (poisson, {"loss": ["MSE", "MSE", NoisyLoss(0.1)]}),
    "function": (function, {}),
    "noisy targets": (function, {"loss": NoisyLoss(0.3)}),
}


@pytest.mark.parametrize("floor_option", ["auto", "label", "stream"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_floor_goes_with_what_is_known_of_the_data(name, kind, floor_option):
    set_SNR_options(floor=floor_option)
    make, options = KINDS[kind]
    m = make()
    if floor_option == "label" and "noisy" not in kind:
        message = "needs the data's error: .*NoisyPointSetBC.*noisy.*NoisyLoss"
        with pytest.raises(ValueError, match=message):
            m.compile(name, lr=1e-3, **options)
        return
    train(m, name, iterations=3, **options)
    if floor_option == "stream" or "noisy" not in kind:
        assert gate(m) == STREAM and not m.opt.noise
        assert "floor: stream" in m.opt.describe()
        return
    alone = kind == "noisy targets"
    assert gate(m) == (DATA_ALONE if alone else BESIDE_EXACT["eigen"])
    assert len(m.opt.noise) == 1 and "floor: label" in m.opt.describe()
    beside = {
        "noisy condition": "the equation; condition 0 (DirichletBC)",
        "noisy equation": "condition 0 (DirichletBC); condition 1 (PointSetBC)",
        "noisy condition by its loss": "the equation; condition 0 (DirichletBC)",
        "noisy targets": "none: all of the loss is noisy",
    }[kind]
    assert f"exact: {beside}\n" in m.opt.describe()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_given_of_the_gate_changes_the_floors_own(name):
    for m, own in ((model(measured()), BESIDE_EXACT["eigen"]), (model(exact()), STREAM)):
        set_SNR_options(gate="soft", lambd=2.0)
        assert gate(train(m, name)) == own.replace({"form": "soft", "lambd": 2.0})
        set_SNR_options(gate=Gate("hard", alpha=3.0, warmup_steps=2))
        assert gate(train(m, name)) == Gate("hard", alpha=3.0, warmup_steps=2)
        set_SNR_options(alpha=25.0)
        assert gate(train(m, name)) == own.replace({"alpha": 25.0, "z": None})


def test_the_description_before_the_first_step():
    m = model(measured(), ends())
    m.compile("snr_adam", lr=1e-3, verbose=0)
    assert "exact: whatever else is in the loss; seen in the first step" in m.opt.describe()
    assert "condition 0 (NoisyPointSetBC), mse, sigma 0.1 to 0.6" in m.opt.describe()


RELATIVE = "mean l2 relative error"


@pytest.mark.parametrize("loss", [RELATIVE, ["MSE", RELATIVE]])
def test_losses_that_are_no_mean_over_errors_are_refused(loss):
    for name in OPTIMIZERS:
        with pytest.raises(ValueError, match="no label floor for the loss mean_l2_relative_error"):
            model(measured()).compile(name, lr=1e-3, loss=loss)


@pytest.mark.parametrize("options", [{"floor": "stream"}, {"gate": "none"}])
def test_without_a_label_floor_every_loss_will_do(options):
    set_SNR_options(**options)
    m = model(measured())
    m.compile("snr_adam", lr=1e-3, loss=RELATIVE, verbose=0)
    assert not m.opt.noise and noise_of(m) is not None
    m.compile("adam", lr=1e-3, loss=RELATIVE, verbose=0)
    assert type(m.opt) is torch.optim.Adam


def test_a_loss_of_exact_terms_does_not_matter():
    m = model(measured())
    m.compile("snr_adam", lr=1e-3, loss=[RELATIVE, "MSE"], verbose=0)
    assert m.opt.noise


def test_a_refused_model_is_forgotten():
    """The next compile is told of its own model."""
    with pytest.raises(ValueError, match="no label floor"):
        model(measured()).compile("snr_adam", lr=1e-3, loss=RELATIVE)
    net = dde.nn.FNN([1, 4, 1], "tanh", "Glorot uniform")
    optimizer, _ = dde.optimizers.get(net.parameters(), "snr_adam", learning_rate=1e-3)
    assert type(optimizer) is SNRAdam and not optimizer.noise


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "mean squared error",
        ["MSE", "MSE"],
        torch.nn.MSELoss(),
        lambda y, f: (f - y).square().mean(),
    ],
)
def test_other_names_of_the_squared_error_will_do(loss):
    own, named = train(model(measured()), loss=loss), train(model(measured()))
    torch.testing.assert_close(tensors(own), tensors(named))
    assert "(NoisyPointSetBC), mse, sigma" in own.opt.describe()


def test_one_noisy_loss_for_equation_and_conditions_is_refused():
    for optimizer in ("snr_adam", "adam"):
        with pytest.raises(ValueError, match=r"give a list, such as loss=\[NoisyLoss"):
            poisson().compile(optimizer, lr=1e-3, loss=NoisyLoss(0.1))


def test_one_noisy_loss_for_conditions_alone():
    bcs = [dde.icbc.PointSetBC(X[:1], Y[:1]), dde.icbc.PointSetBC(X[:1], Y[:1])]
    m = measured_only(*bcs)
    train(m, loss=NoisyLoss(0.1), loss_weights=[1, 0])
    assert not m.opt.beside_exact and gate(m) == DATA_ALONE


@pytest.mark.parametrize("external", [False, True], ids=["", "external"])
@pytest.mark.parametrize("regularization", [None, ["l2", 1e-3]], ids=["", "l2"])
@pytest.mark.parametrize("floor_option", ["auto", "label"])
def test_without_gate_noisy_conditions_are_adam_bit_for_bit(external, regularization, floor_option):
    set_SNR_options(gate="none", floor=floor_option)
    found = []
    for optimizer in ("adam", "snr_adam"):
        c = dde.Variable(2.0)
        m = model(measured(), ends(), coefficient=c, regularization=regularization)
        options = {"external_trainable_variables": c} if external else {}
        train(m, optimizer, loss_weights=[1, 10, 5], **options)
        found.append([*tensors(m), c.detach()])
    assert_same_bits(found[1], found[0])


# An optimizer that is there already


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("what", ["conditions", "targets"])
def test_an_instance_takes_the_noise_of_the_data(name, what):
    """It does as the one that is made for the name."""
    set_SNR_options(floor_every=1)
    found = []
    for by_name in (True, False):
        if what == "conditions":
            m, options = model(measured(), ends()), {"loss_weights": [1, 10, 5]}
        else:
            m, options = supervised(), {"loss": NoisyLoss(0.1)}
        # DeepXDE's weight decay is Adam's, and ours for names
        own = OPTIMIZERS[name](m.net.parameters(), lr=1e-2, decoupled_weight_decay=False)
        train(m, name if by_name else own, **options)
        assert by_name or m.opt is own
        found.append((tensors(m), floor(m), m.opt.describe()))
    assert_same_bits(found[0][:2], found[1][:2])
    assert found[0][2] == found[1][2]


def test_an_instance_declared_by_hand_is_declared_once():
    """With the loss that DeepXDE gets, too."""
    loss = NoisyLoss(only(3))
    m = supervised()
    own = SNRAdam(m.net.parameters(), lr=0.0, noise=loss)
    train(m, own, lr=None, loss=loss, iterations=2)
    assert len(own.noise) == 1
    assert_close(floor(m), exact_variance(m, [(X, Y, only(3), 1)]))


def test_an_instance_keeps_what_was_declared_by_hand():
    """A noisy loss of one's own, in a loss function that DeepXDE calls."""
    data = NoisyLoss(only(3))

    def own_loss(y, prediction):
        return 2 * data(prediction, y)

    m = supervised()
    own = SNRAdam(m.net.parameters(), lr=0.0, noise=data)
    train(m, own, lr=None, loss=own_loss, iterations=2)
    assert own.noise == [data]
    assert_close(floor(m), exact_variance(m, [(X, Y, only(3), 2)]))


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_missing_unknowns_are_added_to_an_instance_without_a_gate(as_list, named):
    c = dde.Variable(2.0)
    m = model(measured(), coefficient=c)
    params = m.net.named_parameters() if named else m.net.parameters()
    own = SNRAdam(params, lr=1e-2, weight_decay=0.1)
    unknowns = [c] if as_list else c
    for times in (1, 2):
        train(m, own, lr=None, external_trainable_variables=unknowns)
        assert len(own.param_groups) == 2
        (found,) = own.param_groups[1]["params"]
        assert found is c and c.item() != 2.0
        assert own.param_groups[1]["weight_decay"] == 0 and own.param_groups[1]["lr"] == 1e-2
        assert own.moments(c).gate.form == "none"
        assert own.param_groups[1]["betas"] == (0.9, 0.99)
        assert m.opt.state[c]["step"] == 20 * times


def test_unknowns_that_an_instance_has_stay_as_they_were_given():
    c = dde.Variable(2.0)
    m = model(measured(), coefficient=c)
    own = SNRAdam([*m.net.parameters(), c], lr=1e-2)
    train(m, own, lr=None, external_trainable_variables=c)
    assert len(own.param_groups) == 1 and own.moments(c).gate.form == "stein"


def test_an_instance_can_be_compiled_twice():
    """As once, if nothing was stepped in between; with other conditions, it takes theirs."""
    found = []
    for times in (1, 3):
        m = model(measured(), ends())
        own = SNRAdam(m.net.parameters(), lr=1e-2)
        for _ in range(times):
            m.compile(own, verbose=0)
        train(m, own, lr=None)
        found.append([*tensors(m), *floor(m)])
    assert_same_bits(found[0], found[1])
    m.data.bcs[:] = [measured(0.2, X + 0.1), measured(batch_size=2), ends()]
    m.data.train_x_bc = None
    m.data.resample_train_points()
    train(m, own, lr=None)
    assert len(own.noise) == 2 and "sigma 0.2" in own.describe()


def test_an_instance_looks_again_after_another_compile():
    m = model(measured())
    own = SNRAdam(m.net.parameters(), lr=1e-2)
    for weight, beside in ((0.0, False), (1.0, True), (0.0, False)):
        train(m, own, lr=None, loss_weights=[weight, 1.0], iterations=2)
        assert own.beside_exact is beside


def test_an_instance_with_options_of_the_published_rule_is_refused_noisy_data():
    m = model(measured())
    own = SNRAdam(m.net.parameters(), alpha=0.5)
    with pytest.raises(ValueError, match=r"alpha and lambd belong to the published rule"):
        m.compile(own, verbose=0)
    train(model(exact()), SNRAdam(m.net.parameters(), alpha=0.5), lr=None, iterations=1)


# Compiled one after another


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("sigma", [None, 0.1], ids=["stream", "label"])
def test_adam_afterwards_is_as_without_us(name, sigma):
    """From the same weights: after a learning rate of 0."""
    torch.manual_seed(0)
    model, untouched = poisson(sigma=sigma), poisson()
    untouched.net.load_state_dict(model.net.state_dict())
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
    found = []
    for times in (1, 2):
        torch.manual_seed(0)
        model = poisson(sigma=0.1)
        for _ in range(times):
            model.compile(name, lr=1e-2, verbose=0)
        torch.manual_seed(1)
        model.train(iterations=10, verbose=0)
        found.append((weights(model), floor(model)))
    assert_same_bits(found[1], found[0])


def test_compiled_before_data_that_know_no_error():
    """Two models, one after the other: each is asked for its own conditions."""
    known, unknown = model(measured()), model(exact())
    for m in (known, unknown, known):
        train(m, iterations=2)
    assert known.opt.noise and not unknown.opt.noise
    assert noise_of(known) is not None and noise_of(unknown) is None


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copy_of_the_optimizer_keeps_its_state(how, name):
    set_SNR_options(floor_every=1)
    m = train(model(measured()), name, iterations=3)
    twin = how(m.opt)
    pairs = zip(m.opt.param_groups[0]["params"], twin.param_groups[0]["params"], strict=True)
    for p, copied in pairs:
        assert copied is not p
        assert_same_bits(twin.state[copied]["exp_floor"], m.opt.state[p]["exp_floor"])
        copied.grad = torch.ones_like(copied)
    assert not twin.noise  # to be declared anew
    with pytest.raises(RuntimeError, match=r"declare\(noise\)"):
        twin.step()
    twin.declare(None)
    twin.step()
    before = floor(m)
    m.train(iterations=1, verbose=0)
    assert {m.opt.state[p]["floor_step"] for p in m.net.parameters()} == {4}
    assert not torch.equal(before[0], floor(m)[0])


def test_a_floor_by_hand_and_noisy_data_are_one_too_many():
    m = train(model(measured()), iterations=1)
    for p in m.net.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="Noise was declared to this optimizer"):
        m.opt.step(floor={p: torch.ones_like(p) for p in m.net.parameters()})


# The hint


@pytest.fixture
def not_hinted(monkeypatch):
    monkeypatch.setattr("sciml_snr.deepxde.compile.hint_given", False)


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
    with pytest.warns(UserWarning, match=r"NoisyPointSetBC.*noisy\(.*NoisyLoss\(sigma"):
        model.train(iterations=HINT_AFTER + 1, verbose=0)


def test_hint_names_the_line_that_trains(not_hinted):
    model = poisson()
    model.compile("snr_adam", lr=1e-3, verbose=0)
    with pytest.warns(UserWarning, match="data have not changed") as caught:
        line = inspect.currentframe().f_lineno + 1
        model.train(iterations=HINT_AFTER + 1, verbose=0)
    (warning,) = [w for w in caught if "data have not changed" in str(w.message)]
    assert (warning.filename, warning.lineno) == (__file__, line)


@pytest.mark.parametrize(
    "options", [{"floor": "stream"}, {"gate": "none"}], ids=lambda o: next(iter(o))
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
    for each in (unmeasured, batches):
        assert hints(each, callbacks=[resampler]) == 0
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


def test_no_hint_where_the_loss_knows_the_error(not_hinted):
    for m, loss in ((supervised(), NoisyLoss(0.1)), (poisson(), [NoisyLoss(0.1), "MSE", "MSE"])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(m, iterations=HINT_AFTER + 1, loss=loss)


def test_no_hint_for_other_optimizers(not_hinted):
    assert hints(poisson(), name="adam") == 0


def test_hint_leaves_copies_and_training_alone(not_hinted):
    model = poisson()
    model.compile("snr_adam", lr=1e-3, verbose=0)
    copies = [copy.deepcopy(model.opt), pickle.loads(pickle.dumps(model.opt))]
    with pytest.warns(UserWarning, match="data have not changed"):
        model.train(iterations=HINT_AFTER + 1, verbose=0)
    for twin in copies:
        assert "step" not in twin.state.get(twin.param_groups[0]["params"][0], {})


# External trainable variables


def form_of(optimizer, group):
    return optimizer.moments(group["params"][0]).gate.form


def test_external_variables_are_trained_and_not_gated():
    coefficient = dde.Variable(2.0)
    optimizer = trained("snr_adam", coefficient=coefficient).opt
    assert [form_of(optimizer, group) for group in optimizer.param_groups] == ["soft", "none"]
    assert optimizer.gate_stats(1) == GateStats(mean_q=1.0, open_fraction=1.0, numel=1)
    assert optimizer.gate_stats(0).mean_q < 1
    assert coefficient.item() != 2.0


def test_external_variables_are_gated_on_demand():
    set_SNR_options(gate_external=True)
    optimizer = trained("snr_adam", coefficient=dde.Variable(2.0)).opt
    assert [form_of(optimizer, group) for group in optimizer.param_groups] == ["soft", "soft"]
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
    assert len(group["params"]) == 2 and "gate: soft" in model.opt.describe()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.9, 0.99)),
        ({"betas": (0.8, 0.95)}, (0.8, 0.95)),
        ({"gate_external": True}, (0.9, 0.999)),
        ({"floor": "stream"}, (0.9, 0.999)),
        ({"gate": "none"}, (0.9, 0.999)),
    ],
    ids=["default", "given", "gated", "no label floor", "Adam"],
)
def test_external_variables_forget_their_first_gradients_sooner(name, options, expected):
    set_SNR_options(**options)
    c = dde.Variable(2.0)
    m = train(model(measured(), coefficient=c), name, external_trainable_variables=c)
    assert m.opt.param_groups[0]["betas"] == options.get("betas", (0.9, 0.999))
    assert m.opt.param_groups[1]["betas"] == expected


# Options


ALL_OTHER = dict(
    gate="snr",
    alpha="finite",
    lambd=2.0,
    z=1.5,
    floor="stream",
    floor_every=3,
    rho=0.9,
    warmup_steps=7,
    rise_steps=11,
    discrepancy=True,
    betas=(0.8, 0.99),
    eps=1e-6,
    batch_size=8,
    data_size=80,
    nonfinite="skip",
    gate_external=True,
    split_step=False,
    equation_points=7,
    coordinates="own",
    basis="gradient",
    shampoo_beta=0.5,
    precondition_frequency=3,
    max_precondition_dim=16,
    reduction="per_tensor",
)


GATE = ("gate", "alpha", "lambd", "z", "warmup_steps", "rise_steps", "discrepancy")
"""The options that change the gate; not given, they are the floor's own."""

OURS = ("floor", "gate_external", "split_step", "equation_points")
"""The options that are not the optimizer's."""


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_defaults_are_those_of_the_optimizer():
    """None: what goes with the floor."""
    options = defaults(set_SNR_options)
    assert [options.pop(name) for name in OURS] == ["auto", False, True, EQUATION_POINTS]
    assert {options.pop(name) for name in GATE} == {None}
    own = defaults(SNRAdam.__init__)
    assert options == {name: own[name] for name in options}


@pytest.mark.parametrize("sigma", [None, 0.1], ids=["stream", "label"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_reaches_the_optimizer(name, sigma):
    set_SNR_options(**{**ALL_OTHER, "floor": "auto", "alpha": 0.7})
    model = trained(name, 8, sigma=sigma)
    group, known = model.opt.param_groups[0], defaults(set_SNR_options)
    for option, default in known.items():
        value = ALL_OTHER[option]
        assert value != default, option
        if name == "snr_soap" and option == "coordinates":
            assert group[option] == "eigen"
        elif option not in (*OURS, *GATE):
            assert group[option] == value, option
    expected = dict(z=1.5, alpha=0.7, lambd=2.0, warmup_steps=7, rise_steps=11, discrepancy=True)
    assert gate(model) == Gate("snr", **expected)
    rows = {"snr": "gate: snr, z = 1.5, rising with the steps", "from step": "from step 7 on"}
    assert all(line in model.opt.describe() for line in rows.values())


def test_finite_alpha_is_the_published_rules():
    """b / (n - b)."""
    set_SNR_options(alpha="finite", batch_size=8, data_size=80)
    assert gate(trained("snr_adam", 1)) == STREAM.replace({"alpha": 8 / 72})


@pytest.mark.parametrize("alpha", ["fresh", "finite"])
def test_alpha_of_the_published_rule_beside_noise_is_refused(alpha):
    set_SNR_options(alpha=alpha, batch_size=8, data_size=80)
    with pytest.raises(ValueError, match=f"alpha='{alpha}' belongs to the published rule"):
        poisson(sigma=0.1).compile("snr_adam", lr=1e-3)
    set_SNR_options(alpha=alpha, batch_size=8, data_size=80, floor="stream")
    poisson(sigma=0.1).compile("snr_adam", lr=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_alpha_goes_before_a_default_z(name):
    set_SNR_options(alpha=25.0)
    found = gate(trained(name, 1, sigma=0.1))
    assert found == BESIDE_EXACT["eigen"].replace({"alpha": 25.0}) and found.z is None


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
        set_SNR_options(z=number(2), betas=betas, floor_every=whole(2), rise_steps=whole(9))
        model = trained(name, 5, lr=lr, regularization=["l2", number(1e-3)], sigma=number(0.1))
        found.append(weights(model))
        path = model.save(str(tmp_path / "model"))
        restored = poisson(regularization=["l2", number(1e-3)], sigma=number(0.1))
        restored.compile(name, lr=np.float32(1e-3), verbose=0)
        restored.restore(path)
        assert restored.opt.param_groups[0]["lr"] == 0.01
    assert torch.equal(*found)


def test_options_leave_a_compiled_model_alone():
    model = trained("snr_adam", 1)
    set_SNR_options(gate="hard")
    model.train(iterations=1, verbose=0)
    assert gate(model) == STREAM


NONSENSE = {
    "gate": ["open", {"form": "ajar"}],
    "alpha": [-1, math.nan, math.inf, "stale", "finite", [1.0]],
    "lambd": [-1, math.nan, "1"],
    "z": [-1, math.nan, math.inf, "3"],
    "floor": ["labels", None, 1, ["label"]],
    "floor_every": [0, -1, 1.5, None, "2"],
    "rho": [1, -0.1, math.nan, None],
    "warmup_steps": [-1, 1.5, "3"],
    "rise_steps": [-1, 1.5, "3"],
    "discrepancy": [1, "yes"],
    "betas": [(0.9,), (0.9, 1.0), (-1, 0.9), 0.9, None, (0.9, math.nan), ("a", "b"), "ab"],
    "eps": [-1e-8, None, math.inf],
    "batch_size": [0, -3, 1.5, "8"],
    "data_size": [0, -3, 1.5, "80"],
    "nonfinite": ["ignore", None, True],
    "gate_external": [1, None, "yes"],
    "split_step": [1, None, "yes"],
    "equation_points": [-1, 1.5, None, "many", True],
    "coordinates": ["both", None, 1],
    "basis": ["own", None, 1],
    "shampoo_beta": [1, -0.1, None, math.nan],
    "precondition_frequency": [0, 1.5, None],
    "max_precondition_dim": [0, "64", None],
    "reduction": ["mean", None],
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


@pytest.mark.parametrize("gate", [3, ["soft"], Gate])
def test_a_gate_of_another_kind_is_refused(gate):
    with pytest.raises(TypeError, match="gate must be a name"):
        set_SNR_options(gate=gate)


def test_the_error_of_data_is_no_option():
    with pytest.raises(TypeError, match="sigma"):
        set_SNR_options(sigma=0.1)


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
