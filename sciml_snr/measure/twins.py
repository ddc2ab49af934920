r"""How much of the noise did the fit memorize?

With clean truth u, noise e, measurements y = u + e and fit f, the fit's error splits into a part
along the noise and the rest: :math:`f - u = \mu e + r`, :math:`r \perp e`.

*With the truth known* (synthetic noise): :func:`split_residual`, in parts :func:`split_by`, as a
map :func:`memorized_map`.

*With the truth unknown*: a twin, trained as the fit was but on labels :math:`y' = y + \tau d`,
:math:`d_i = \sigma_i b_i`, :math:`b_i = \pm 1` at random. With :math:`J = \partial f/\partial y`,

.. math::
    \hat\mu = \frac{\langle d, f' - f\rangle}{\tau \langle d, d\rangle}, \qquad
    \mathbb E_b\, \hat\mu
        = \frac{\sum_i \sigma_i^2 J_{ii}}{\sum_i \sigma_i^2} \approx \mathbb E_e\, \mu

(Stein's lemma; with one sigma the middle is tr J / n, the generalized degrees of freedom over n),
and SURE, an unbiased estimate of the risk :math:`\tfrac1n \mathbb E |f - u|^2`:

.. math:: \widehat R = \tfrac1n |f - y|^2 + (2 \hat\mu - 1)\, \overline{\sigma^2}.

:class:`Twins` does this beside a training loop, :func:`measure_memorization` around one.

Sources: C. Stein, Ann. Statist. 9 (1981) 1135; J. Ye, J. Amer. Statist. Assoc. 93 (1998) 120;
B. Efron, J. Amer. Statist. Assoc. 99 (2004) 619; S. Ramani, T. Blu and M. Unser, IEEE Trans. Image
Process. 17 (2008) 1540 (random probes for any algorithm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]
Train = Callable[[Any], Any]
"""Labels -> the fit at the labels' points, of their shape; or a history of fits, (k, *shape)."""

TAU = 0.1
"""Size of the twin's perturbation in standard deviations of the noise: small enough for a
derivative, large enough for float32."""


class ResidualSplit(NamedTuple):
    r"""The error of a fit, :math:`f - u = \mu e + r`, split along the noise."""

    memorized: float
    r""":math:`\mu = \langle f - u, e\rangle / \langle e, e\rangle`: 0 at the truth, 1 at y."""
    signal_error: float
    """Mean square of r: what is wrong with the fit besides the noise in it."""
    noise_error: float
    """Mean square of mu e. The two errors add up to the mean square of f - u."""
    cosine: float
    """Cosine of the angle between f - u and e; 0 where the fit is the truth."""
    size: int
    """Number of measurements."""


def split_residual(fit: ArrayLike, clean: ArrayLike, noisy: ArrayLike) -> ResidualSplit:
    """Split a fit's error along the noise.

    Args:
        fit: f, the fit at the measured points, any shape.
        clean: u, the truth there, same shape.
        noisy: y, the measurements, same shape.

    Raises:
        ValueError: shapes differ, or there is no noise (noisy equals clean).
    """
    f, u, y = (as_array(a) for a in (fit, clean, noisy))
    if not f.shape == u.shape == y.shape:
        raise ValueError(f"fit, clean and noisy differ in shape: {f.shape}, {u.shape}, {y.shape}.")
    e, error = y - u, f - u
    energy = float(np.vdot(e, e))
    if energy == 0:
        raise ValueError("noisy equals clean: there is no noise to memorize.")
    share = float(np.vdot(error, e)) / energy
    total = float(np.vdot(error, error))
    return ResidualSplit(
        memorized=share,
        signal_error=float(((error - share * e) ** 2).mean()),
        noise_error=share**2 * energy / e.size,
        cosine=share * math.sqrt(energy / total) if total else 0.0,
        size=e.size,
    )


def memorized_share(fit: ArrayLike, clean: ArrayLike, noisy: ArrayLike) -> float:
    r"""Share of the noise in the fit, :math:`\mu = \langle f-u, e\rangle / \langle e, e\rangle`.

    0 for a fit that knows nothing of the noise, 1 for one that passes through every measurement.
    A least-squares fit of k parameters to n measurements has k/n on average (its degrees of freedom
    over n: Ye 1998; Efron 2004), so a good fit is above 0.

    Args, Raises: as for :func:`split_residual`.
    """
    return split_residual(fit, clean, noisy).memorized


def split_by(
    parts: ArrayLike, fit: ArrayLike, clean: ArrayLike, noisy: ArrayLike
) -> dict[Hashable, ResidualSplit]:
    """:func:`split_residual` for every part of the data: terms of a loss, regions of an image.

    Args:
        parts: one label per measurement (numbers or strings); its shape is the measurements', or
            leads it: (h, w) for an image (h, w, 3).
        fit, clean, noisy: as for :func:`split_residual`.

    Raises:
        ValueError: the shapes do not fit, or a part has no noise.
    """
    labels = np.asarray(parts)
    arrays = [as_array(a) for a in (fit, clean, noisy)]
    for a in arrays:
        if a.shape[: labels.ndim] != labels.shape:
            raise ValueError(f"parts {labels.shape} do not lead the measurements' shape {a.shape}.")
    return {
        label.item(): split_residual(*(a[labels == label] for a in arrays))
        for label in np.unique(labels)
    }


def memorized_map(fit: ArrayLike, clean: ArrayLike, noisy: ArrayLike, width: float = 3.0) -> Array:
    r"""Where on a grid the noise was memorized: the share in a Gaussian window about each point.

    .. math:: \mu(x) = (w * (f-u) e)(x) \,/\, (w * e^2)(x)

    Args:
        fit, clean, noisy: (h,), (h, w) or (h, w, c), c channels counted together.
        width: standard deviation of the window w, in grid points.

    Returns:
        (h,) or (h, w) shares.

    Raises:
        ValueError: shapes differ or have more than three dimensions, there is no noise, or the
            width is not positive.
    """
    split_residual(fit, clean, noisy)  # the checks
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}.")
    f, u, y = (as_array(a) for a in (fit, clean, noisy))
    e = y - u
    if e.ndim > 3:
        raise ValueError(f"fit has the shape {e.shape}: give (h,), (h, w) or (h, w, c).")
    products = [(f - u) * e, e**2]
    if e.ndim == 3:
        products = [p.sum(-1) for p in products]
    along, energy = (gaussian_filter(p, width) for p in products)
    found: Array = np.divide(along, energy, out=np.zeros_like(along), where=energy > 0)
    return found


TELLING = 200
"""Data from which on chance moves :func:`share_from_misfit` by less than 0.1."""


def share_from_misfit(fit: ArrayLike, noisy: ArrayLike, sigma: ArrayLike) -> float:
    r"""A running estimate for the price of a mean: the share :math:`1 - |(f-y)/\sigma|^2/n`.

    Exact on average for a fit that has reached the truth and passes every direction of the data
    either whole or not at all, as a least-squares fit of k parameters does (k/n). An error of the
    signal lowers it; directions that are half memorized raise it (1 - (1-c)^2 is counted for a
    share c: at most twice). Between 0 and 1. The twin has neither fault. By chance alone it is off
    by a standard deviation of sqrt(2 / n): with fewer than ``TELLING`` data it tells nothing.

    Args:
        fit, noisy: the fit and the measurements, one shape.
        sigma: standard deviation of the error, positive, broadcastable to them.

    Raises:
        ValueError: shapes differ, or sigma is not positive.
    """
    f, y = as_array(fit), as_array(noisy)
    if f.shape != y.shape:
        raise ValueError(f"fit and noisy differ in shape: {f.shape}, {y.shape}.")
    misfit = float((((f - y) / check_deviation(sigma, y.shape)) ** 2).mean())
    return min(1.0, max(0.0, 1.0 - misfit))


class Memorization(NamedTuple):
    """What twins tell of a fit at one moment; mean squares are over all measurements."""

    iteration: int
    share: float
    """Memorized share: degrees of freedom over n."""
    share_se: float
    """Its standard error: the twins' signs are random."""
    realized_se: float
    """Standard error of ``share`` as a statement on these very measurements, whose noise had the
    luck it had: <f - u, e> / <e, e> scatters about its mean."""
    misfit: float
    """Mean square of f - y."""
    risk: float
    """SURE: estimate of the mean square of f - u."""
    risk_se: float
    """Standard error of ``risk`` as an estimate of the mean square of f - u of this very fit."""
    true_share: float
    """Where the truth is known, as :func:`memorized_share`; else NaN."""
    true_risk: float
    """Where the truth is known, mean square of f - u; else NaN."""

    def interval(self) -> tuple[float, float]:
        """95 % interval of what this fit memorized of these measurements' noise."""
        width = 1.96 * self.realized_se
        return self.share - width, self.share + width

    @property
    def is_measurable(self) -> bool:
        """Whether the interval of the share is within -100 and 200 %: a share is between 0 and 1,
        and an interval that goes further says nothing."""
        low, high = self.interval()
        return low >= -1 and high <= 2

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval())
        share = f"memorized {100 * self.share:.1f} % of the noise (95 % interval {low:.1f} to"
        if not self.is_measurable:
            share = f"memorized share not measurable with so few data (95 % interval {low:.0f} to"
        digits = 1 if self.is_measurable else 0
        return f"{share} {high:.{digits}f} %), estimated risk {self.risk:.3g} +- {self.risk_se:.1g}"


class Twins:
    """Twins of a fit in training: what to train them on, and what their fits tell.

    Train the fit on the labels, and each twin as the fit is trained (same initial weights, seeds
    and batches) on one of :attr:`labels`; tell :meth:`record` all the fits, at any moments.

    Args:
        labels: y, the measurements, any shape.
        sigma: standard deviation of their error, broadcastable to y.
        probes: number of twins. One does; the variance falls as 1/probes.
        tau: size of the perturbation in units of sigma.
        seed: of the random signs.
        clean: u, the truth, where it is known: then what is recorded holds the true values too.
        draw: numbers of mean 0 and variance 1, of the labels' shape, correlated as their errors
            are, in place of independent signs. Standard errors are then too small.

    Raises:
        ValueError: labels are not finite; sigma is 0 everywhere, negative or of the wrong shape;
            another argument is out of range.

    Example:
        >>> twins = Twins(y, sigma=0.1)
        >>> nets = [make_net() for _ in range(1 + twins.probes)]
        >>> for i in range(1000):
        ...     for net, target in zip(nets, [y, *twins.labels]):
        ...         train_step(net, target)
        ...     if i % 50 == 0:
        ...         print(twins.record(i, nets[0](x), [net(x) for net in nets[1:]]))
        >>> twins.best().iteration
    """

    def __init__(
        self,
        labels: ArrayLike,
        sigma: ArrayLike,
        *,
        probes: int = 1,
        tau: float = TAU,
        seed: int = 0,
        clean: ArrayLike | None = None,
        draw: Callable[[np.random.Generator], Array] | None = None,
    ) -> None:
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}.")
        if not 0 < tau < math.inf:
            raise ValueError(f"tau must be a positive number, got {tau}.")
        self._y = as_array(labels)
        if not np.isfinite(self._y).all():
            raise ValueError("labels has entries that are NaN or infinite: leave them out.")
        self._sigma = check_deviation(sigma, self._y.shape, allow_zero=True)
        self._clean = None if clean is None else as_array(clean)
        if self._clean is not None and self._clean.shape != self._y.shape:
            raise ValueError(f"clean {self._clean.shape} is not of labels' {self._y.shape}.")
        rng = np.random.default_rng(seed)
        if draw is None:
            signs = rng.choice([-1.0, 1.0], size=(probes, *self._y.shape))
        else:
            signs = np.stack([draw(rng) for _ in range(probes)])
        self.probes = probes
        self.tau = tau
        self.shifts = tau * self._sigma * signs
        """(probes, *shape): what is added to the labels."""
        self.rows: list[Memorization] = []
        """What has been recorded."""

    @property
    def labels(self) -> list[Array]:
        """The labels of every twin."""
        return [self._y + shift for shift in self.shifts]

    def record(
        self, iteration: int, fit: ArrayLike, twin_fits: Sequence[ArrayLike]
    ) -> Memorization:
        """Measure, and append to :attr:`rows`.

        Args:
            iteration: when.
            fit: the fit at the labels' points, of their shape.
            twin_fits: the same of every twin, in the order of :attr:`labels`.

        Raises:
            ValueError: a shape or their number is wrong.
            FloatingPointError: a fit is not finite.
        """
        if len(twin_fits) != self.probes:
            raise ValueError(f"There are {len(twin_fits)} fits for {self.probes} twins.")
        f, *twins = (as_array(a) for a in (fit, *twin_fits))
        for a in (f, *twins):
            if a.shape != self._y.shape:
                raise ValueError(f"A fit of shape {a.shape} for labels of {self._y.shape}.")
            if not np.isfinite(a).all():
                raise FloatingPointError(f"A fit has NaN or infinite entries at {iteration}.")
        row = self._measure(iteration, f, twins)
        self.rows.append(row)
        return row

    def _measure(self, iteration: int, f: Array, twins: list[Array]) -> Memorization:
        r"""The formulas of the module docstring.

        With :math:`A = DJD`, :math:`D = diag(\sigma)`, a probe's :math:`b^T A b` has the variance
        :math:`\tfrac12\sum_{i \ne j}(A_{ij} + A_{ji})^2 \le 2(\|A\|_F^2 - \sum_i A_{ii}^2)
        \le 2(\|A\|_F^2 - (tr A)^2/n)`, and :math:`\mathbb E\,|A b|^2 = \|A\|_F^2` comes from the
        same twin: on average the standard errors are upper bounds.
        """
        n, variance = f.size, self._sigma**2
        power = float(variance.mean())
        shares, norms = [], []
        for shift, twin in zip(self.shifts, twins, strict=True):
            moved = (twin - f) / self.tau  # J d
            shares.append(float((shift / self.tau * moved).mean()) / power)
            norms.append(float((variance * moved**2).mean()) / power**2)
        share = float(np.mean(shares))
        norm = max(float(np.mean(norms)), share**2)  # |A|_F^2 / (n power^2)
        scatter = 2 * (norm - share**2) / n
        misfit = float(((f - self._y) ** 2).mean())
        risk = misfit + (2 * share - 1) * power
        signal = 4 * max(risk, 0.0) * power / n  # of 2 <f(u) - u, e> / n
        sure = power**2 * (2 * (1 - 4 * share + 4 * norm) / n + 4 * scatter / self.probes)
        truth = (math.nan, math.nan)
        if self._clean is not None:
            split = split_residual(f, self._clean, self._y)
            truth = (split.memorized, split.signal_error + split.noise_error)
        return Memorization(
            iteration,
            share,
            math.sqrt(scatter / self.probes),
            math.sqrt(scatter * (1 + 1 / self.probes) + signal / (4 * power**2)),
            misfit,
            risk,
            math.sqrt(sure + signal),
            *truth,
        )

    def best(self) -> Memorization:
        """The moment of the lowest estimated risk.

        Raises:
            ValueError: nothing has been recorded.
        """
        if not self.rows:
            raise ValueError("Nothing has been recorded yet.")
        return min(self.rows, key=lambda row: row.risk)


def measure_memorization(
    train: Train,
    labels: ArrayLike,
    sigma: ArrayLike,
    *,
    probes: int = 1,
    tau: float = TAU,
    seed: int = 0,
    clean: ArrayLike | None = None,
    iterations: Sequence[int] | None = None,
) -> Twins:
    """Train on the labels and then, once per probe, on perturbed ones.

    Args:
        train: trains from the start, always with the same seeds, on the labels it is given (float
            arrays of their shape), and returns the fit at their points: an array of their shape or,
            for the curve over a run, (k, *shape).
        labels, sigma, probes, tau, seed, clean: as for :class:`Twins`.
        iterations: the k iterations of the history, if not 0, 1, ..., k - 1.

    Returns:
        Twins with one row per fit in the history.

    Raises:
        ValueError: as for :class:`Twins`; or the fits are not of the labels' shape, or not as many
            as iterations.

    Example:
        >>> found = measure_memorization(train, y, sigma=0.1, probes=3).rows[-1]
        >>> print(found)
        memorized 6.1 % of the noise (95 % interval 4.9 to 7.3 %), estimated risk 0.0012 +- 0.0002
    """
    twins = Twins(labels, sigma, probes=probes, tau=tau, seed=seed, clean=clean)
    y = as_array(labels)
    histories = [_history(train(target), y.shape) for target in (y.copy(), *twins.labels)]
    lengths = {len(history) for history in histories}
    times = range(len(histories[0])) if iterations is None else iterations
    if lengths != {len(times)}:
        raise ValueError(f"There are histories of {sorted(lengths)} fits for {len(times)} moments.")
    for iteration, fit, *twin_fits in zip(times, *histories, strict=True):
        twins.record(iteration, fit, twin_fits)
    return twins


def _history(fits: Any, shape: tuple[int, ...]) -> Array:
    history = as_array(fits)
    history = history[None] if history.shape == shape else history
    if history.shape[1:] != shape:
        raise ValueError(
            f"train returned an array of shape {history.shape} for labels of {shape}: return the "
            "fit at the labels' points, or a history (k, *shape) of it."
        )
    return history


def as_array(values: Any) -> Array:
    """Numbers, arrays or tensors (any device and dtype, attached or not) as a float64 array; NaN
    where an array is masked."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    elif isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)
    elif isinstance(values, (list, tuple)) and any(hasattr(v, "detach") for v in values):
        values = [as_array(v) for v in values]
    return np.asarray(values, dtype=np.float64)


def check_deviation(sigma: Any, shape: tuple[int, ...], allow_zero: bool = False) -> Array:
    """A standard deviation as an array of the given shape.

    Raises:
        ValueError: it is negative or not finite, 0 (everywhere, with ``allow_zero``), or does not
            broadcast to the shape.
    """
    found = as_array(sigma)
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ValueError("sigma must be finite and positive.")
    if not allow_zero and (found == 0).any():
        raise ValueError("sigma must be positive everywhere.")
    try:
        return np.broadcast_to(found, shape)
    except ValueError:
        raise ValueError(f"sigma {found.shape} does not broadcast to labels of {shape}.") from None
