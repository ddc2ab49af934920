"""Two ways to deal with noise from outside the optimizer: smooth the data, or average networks."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import deepxde as dde
import numpy as np
import torch
from torch.nn.functional import dropout

from ..measure.twins import Array, as_array
from ..problems import Problem
from .stopping import change_measured, conditions_of

DROPOUT = 0.05
"""Share of neurons that are left out; as Yang, Meng and Karniadakis, J. Comput. Phys. 425 (2021)
109913, do in their comparison."""

PASSES = 50
"""Forward passes that are averaged."""


def check_one_output(problem: Problem) -> None:
    """Refuse measurements of more than one kind: the Gaussian process has one output.

    Raises:
        ValueError: says so.
    """
    kinds = len(conditions_of(problem))
    if kinds != 1:
        raise ValueError(f"{kinds} kinds of values are measured, and a process of one is fitted")


def smooth(problem: Problem, seed: int) -> None:
    """Put what a Gaussian process makes of the measurements in their place, for training."""
    check_one_output(problem)
    (measured,) = conditions_of(problem)
    smoothed = gaussian_process(measured.points, as_array(measured.values), seed)

    def change(condition: Any) -> Any:
        found = copy.copy(condition)
        found.values = torch.as_tensor(smoothed).to(condition.values)
        return found

    change_measured(problem, change)


def gaussian_process(points: Array, values: Array, seed: int = 0) -> Array:
    r"""Posterior mean at the points of a Gaussian process with RBF kernel and white noise.

    .. math:: k(x, x') = c \exp(-\tfrac12 \textstyle\sum_j (x_j - x_j')^2 / l_j^2) + s \delta_{xx'}

    c, the l and s maximize the marginal likelihood (Rasmussen and Williams 2006, 5.4), from one
    start at half the points' spread and two at random. It is told nothing of sigma.

    Args:
        points: (n, d); coordinates in which they do not differ are left out.
        values: (n, 1).
        seed: of the random starts.

    Returns:
        (n, 1).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    spread = np.ptp(points, axis=0)
    x = points[:, spread > 0] / spread[spread > 0]
    lengths = np.full(x.shape[1], 0.5)
    kernel = ConstantKernel() * RBF(lengths, (1e-2, 1e2)) + WhiteKernel(0.5, (1e-6, 1e1))
    process = GaussianProcessRegressor(
        kernel, normalize_y=True, n_restarts_optimizer=2, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: a plane
        process.fit(x, values[:, 0])
    found: Array = process.predict(x)[:, None]
    return found


class DropoutFNN(dde.nn.FNN):  # type: ignore[misc]
    """A network with dropout after every hidden layer, in training and in prediction.

    In evaluation its output is the mean of :data:`PASSES` forward passes, always with the same
    masks: Gal and Ghahramani, ICML 2016, arXiv:1506.02142.
    """

    def forward(self, inputs: torch.Tensor) -> Any:
        """(n, d) -> (n, m)."""
        if self.training:
            return self.one_pass(inputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return torch.stack([self.one_pass(inputs) for _ in range(PASSES)]).mean(0)

    def one_pass(self, inputs: torch.Tensor) -> Any:
        """With neurons left out at random."""
        x = inputs if self._input_transform is None else self._input_transform(inputs)
        for linear in self.linears[:-1]:
            x = dropout(self.activation(linear(x)), DROPOUT)
        x = self.linears[-1](x)
        return x if self._output_transform is None else self._output_transform(inputs, x)


def remade(network: Any, width: int, kind: type = dde.nn.FNN) -> Any:
    """The same network with other weights, hidden layers of another width, or of another kind.

    Args:
        network: a ``dde.nn.FNN``.
        width: neurons in every hidden layer; 0 for those it has.
        kind: the class.

    Raises:
        ValueError: the network is of another class.
    """
    if not isinstance(network, dde.nn.FNN):
        raise ValueError(f"the network is a {type(network).__name__}: only an FNN can be resized")
    if not width and kind is dde.nn.FNN:
        return network
    hidden = [width or linear.out_features for linear in network.linears[:-1]]
    sizes = [network.linears[0].in_features, *hidden, network.linears[-1].out_features]
    found = kind(sizes, network.activation, "Glorot normal")
    found._input_transform = network._input_transform
    found._output_transform = network._output_transform
    return found
