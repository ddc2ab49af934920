"""PINA: noisy conditions have their own loss, all others are exact."""

from __future__ import annotations

import plain_torch
import pytest
import torch
import with_pina as example
from oscillator import SIGMA, Network
from pina import Condition, LabelTensor
from pina.domain import CartesianDomain
from pina.equation import Equation
from pina.operator import laplacian
from pina.optim import TorchOptimizer
from pina.problem import InverseProblem, SpatialProblem

import sciml_snr
from tests.cases import assert_same_bits
from tests.extras.running import (
    EXAMPLES,
    PAGES,
    assert_noise_is_kept_out,
    floors,
    printed,
    run_page,
    states,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on workers and devices


def states_of(solver) -> dict:
    return states(solver.model, solver.optimizer.instance)


def train(problem, **options):
    """A few steps of a problem whose condition ``measured`` is noisy."""
    data = sciml_snr.NoisyLoss(SIGMA, reduction="none")
    optimizer = TorchOptimizer(sciml_snr.SNRAdam, lr=5e-3, noise=data)
    solver = example.NoisySolver(
        problem, Network(), optimizer=optimizer, noise={"measured": data}, **options
    )
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
    example.Trainer(
        solver, max_epochs=5, accelerator="cpu", enable_checkpointing=False, **quiet
    ).train()
    return solver


def measured() -> Condition:
    x, y = example.measurements()
    return Condition(input=LabelTensor(x, ["x"]), target=LabelTensor(y, ["u"]))


def test_noise_is_kept_out() -> None:
    assert_noise_is_kept_out(printed("with_pina.py"))


def test_the_page_runs() -> None:
    problem = example.Oscillator()
    problem.discretise_domain(50, "grid")
    space = run_page("pina.md", example, problem=problem)
    example.Trainer(
        space["solver"],
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    ).train()
    assert space["optimizer"].instance.beside_exact is True


def test_the_mixin_of_the_page_is_that_of_the_example() -> None:
    text = (EXAMPLES / "with_pina.py").read_text()
    mixin = text[text.index("class NoisyConditions") : text.index("class NoisySolver")]
    assert mixin.strip() in (PAGES / "pina.md").read_text()


def test_the_equation_is_exact_and_the_floor_is_that_of_the_plain_loop() -> None:
    solver = example.solve("SNRAdam", 10, shuffle=False)
    optimizer = solver.optimizer.instance
    net, plain = plain_torch.fit(sciml_snr.NoisyLoss(SIGMA), "SNRAdam", 10)
    assert optimizer.beside_exact is True
    torch.testing.assert_close(
        floors(solver.model, optimizer), floors(net, plain), rtol=1e-2, atol=1e-12
    )
    for key in ("passes", "steps", "seed"):
        assert optimizer.state[sciml_snr.handover.KEY][key] == plain.state["noise"][key]


def test_the_order_of_the_data_does_not_matter_to_the_fit() -> None:
    one, other = (example.solve("SNRAdam", 10, shuffle=shuffle) for shuffle in (False, True))
    found = floors(one.model, one.optimizer.instance)
    assert not torch.equal(found, floors(other.model, other.optimizer.instance))
    assert 0.5 < found.sum() / floors(other.model, other.optimizer.instance).sum() < 2


def test_data_alone_have_nothing_exact_beside_them() -> None:
    class Measured(SpatialProblem):
        output_variables = ["u"]  # noqa: RUF012
        spatial_domain = CartesianDomain({"x": [0, 1]})
        domains = {}  # noqa: RUF012
        conditions = {"measured": measured()}  # noqa: RUF012

    assert train(Measured()).optimizer.instance.beside_exact is False


def test_validation_between_the_steps_does_not_touch_the_floor() -> None:
    shares = dict(train_size=0.75, val_size=0.25, shuffle=False)
    with_it = example.solve("SNRAdam", 5, **shares)
    without = example.solve("SNRAdam", 5, limit_val_batches=0, **shares)
    assert "val_loss" in with_it.trainer.callback_metrics
    assert "val_loss" not in without.trainer.callback_metrics
    assert_same_bits(states_of(with_it), states_of(without))


def test_an_unknown_coefficient_has_no_gate() -> None:
    def residual(points, u, params):
        return laplacian(u, points, components=["u"], d=["x"]) / 36 + params["k"] * u

    class Inverse(SpatialProblem, InverseProblem):
        output_variables = ["u"]  # noqa: RUF012
        spatial_domain = CartesianDomain({"x": [0, 1]})
        unknown_parameter_domain = CartesianDomain({"k": [0, 2]})
        domains = {"inside": spatial_domain}  # noqa: RUF012
        conditions = {  # noqa: RUF012
            "equation": Condition(domain="inside", equation=Equation(residual)),
            "measured": measured(),
        }

    problem = Inverse()
    problem.discretise_domain(50, "grid")
    optimizer = train(problem).optimizer.instance
    k = problem.unknown_parameters["k"]
    assert "without a gate: 1 parameter(s)" in optimizer.describe()
    assert optimizer.state[k]["step"] == 5 and "exp_floor" not in optimizer.state[k]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("measurd", dict(reduction="none"), "no condition 'measurd'"),
        ("measured", {}, 'reduction="none"'),
        ("measured", dict(sigma=torch.ones(128, 1), reduction="none"), "no sigma per sample"),
    ],
)
def test_misuse_is_refused(name: str, options: dict, message: str) -> None:
    problem = example.Oscillator()
    problem.discretise_domain(50, "grid")
    loss = sciml_snr.NoisyLoss(**{"sigma": SIGMA, **options})
    with pytest.raises(ValueError, match=message):
        example.NoisySolver(problem, Network(), noise={name: loss})
