"""NAME: a problem of my own.

Try it as it is:              sciml-snr solve FILE
with my measurements:         sciml-snr solve FILE --data my.csv
what can be set, by --set:    sciml-snr problems FILE

The columns of my.csv are the coordinates and what is measured (here t, u), and optionally sigma,
the standard deviation of each row's error.
"""

import deepxde as dde
import numpy as np
from sciml_snr.problems import Problem


class MyProblem(Problem):
    """A body that cools: u' = -rate (u - ambient), rate unknown."""

    equation = "u' = -rate (u - ambient); noisy u(t)"

    # Lowest and highest value of each coordinate; the time, if there is one, last and called t.
    ranges = {"t": (0.0, 10.0)}  # in space and time: {"x": (0.0, 1.0), "t": (0.0, 10.0)}
    # What the network gives, what is measured first. If not all is measured: measured = ("u",).
    outputs = ("u",)
    # Positive unknowns, and where their training starts.
    unknown_names = ("rate",)
    guesses = {"rate": 1.0}
    # Points inside the domain at which the equation is imposed; of a boundary, for conditions().
    num_domain = 200
    num_boundary = 2
    iterations = 3000

    # Known constants: keyword arguments with a default, which --set ambient=22 changes.
    def __init__(self, *, ambient=20.0, **others):
        self.ambient = ambient
        super().__init__(**others)

    # The equation, (n, 1): 0 where it holds. Several equations: a list. Output i by coordinate j:
    # dde.grad.jacobian(y, x, i=0, j=0); twice: dde.grad.hessian(y, x, component=0, i=0, j=0).
    def residual(self, x, y):
        u_t = dde.grad.jacobian(y, x, i=0, j=0)
        return u_t + self.unknown("rate") * (y - self.ambient)

    # Exact boundary and initial conditions; without any, leave this out. Of u = 0 at x's ends:
    # [dde.icbc.DirichletBC(self.geometry(), lambda x: 0, lambda x, on_boundary: on_boundary)]
    def conditions(self):
        return []

    # An example to try the problem on before there are measurements: a solution of the equation,
    # the unknowns it has, and measurements of it with errors. With --data all three are not used.
    points = 40
    noise = 2.0

    def truth(self):
        return {"rate": 0.4}

    def reference(self, points):
        return self.ambient + 60 * np.exp(-0.4 * points[:, :1])

    def observe(self, rng, points, noise):
        return self.measure(rng, self.scattered(rng, points), noise)
