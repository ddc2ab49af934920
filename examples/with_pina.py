"""Noisy data in PINA: one condition is measured, everything else is exact."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from oscillator import SIGMA, WEIGHT, Network, error, measurements
from pina import Condition, LabelTensor, Trainer
from pina.domain import CartesianDomain
from pina.equation import Equation
from pina.operator import laplacian
from pina.optim import TorchOptimizer
from pina.problem import SpatialProblem
from pina.solver import PhysicsInformedSingleModelSolver
from pina.weighting import ScalarWeighting

import sciml_snr
from sciml_snr import NoisyLoss


class NoisyConditions:
    """For solvers of PINA 0.3, which have one loss for all conditions: noisy ones get their own.

    Args:
        noise: the losses of noisy conditions, by the conditions' names.
    """

    def __init__(self, *args: Any, noise: dict[str, NoisyLoss], **options: Any) -> None:
        super().__init__(*args, **options)
        self.noise = noise
        for name, loss in noise.items():
            if name not in self.problem.conditions:
                raise ValueError(f"The problem has no condition {name!r}.")
            if loss.reduction != "none":  # PINA reduces the losses of all conditions itself
                raise ValueError(f'The NoisyLoss of {name!r} needs reduction="none".')
            if loss.sigma.ndim > 1 and len(loss.sigma) > 1:
                raise ValueError(f"PINA shuffles data: {name!r} can have no sigma per sample.")

    def _loss_from_residual(self, condition_name: str | None = None) -> torch.Tensor:
        if condition_name not in self.noise:
            return super()._loss_from_residual(condition_name)
        residual = self.residual_tensor.as_subclass(torch.Tensor)
        return self.noise[condition_name].of_residual(residual)

    def configure_optimizers(self) -> Any:
        """The unknown coefficients of an inverse problem have no gate."""
        found = super().configure_optimizers()
        for group in self.optimizer.instance.param_groups[1:]:
            group["gate"] = {"form": "none"}
        return found


class NoisySolver(NoisyConditions, PhysicsInformedSingleModelSolver):
    """PINA's solver of equations with one network, for noisy data."""


def residual(points: LabelTensor, u: LabelTensor) -> LabelTensor:
    """Of the equation, in units of u."""
    return laplacian(u, points, components=["u"], d=["x"]) / 36 + u


class Oscillator(SpatialProblem):
    """The measurements and the equation."""

    output_variables = ["u"]  # noqa: RUF012
    spatial_domain = CartesianDomain({"x": [0, 1]})
    domains = {"inside": spatial_domain}  # noqa: RUF012
    conditions = {  # noqa: RUF012
        "equation": Condition(domain="inside", equation=Equation(residual)),
        "measured": Condition(
            input=LabelTensor(measurements()[0], ["x"]),
            target=LabelTensor(measurements()[1], ["u"]),
        ),
    }


def solve(name: str, epochs: int, **options: Any) -> NoisySolver:
    """Train with SNRAdam or Adam; options are those of PINA's trainer."""
    problem = Oscillator()
    problem.discretise_domain(50, "grid")
    data = NoisyLoss(SIGMA, reduction="none")
    if name == "Adam":
        optimizer = TorchOptimizer(torch.optim.Adam, lr=5e-3)
    else:
        optimizer = TorchOptimizer(sciml_snr.SNRAdam, lr=5e-3, noise=data)
    solver = NoisySolver(
        problem,
        Network(),
        optimizer=optimizer,
        weighting=ScalarWeighting({"equation": WEIGHT}),
        noise={"measured": data},
    )
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
    options = {"enable_checkpointing": False, **quiet, **options}
    Trainer(solver, max_epochs=epochs, accelerator="cpu", **options).train()
    return solver


def main() -> None:
    """Compare with Adam."""
    adam, solver = solve("Adam", 400), solve("SNRAdam", 400)
    print(solver.optimizer.instance.describe())
    print(
        f"error against the truth: Adam {error(adam.model):.3f}, SNRAdam {error(solver.model):.3f}"
    )


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    main()
