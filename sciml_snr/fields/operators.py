r"""What instruments measure of a field: integrals, averages, blurs, Fourier coefficients.

An operator takes a field, a function of points (n, d) with values (n, m), and gives the
measurements that it predicts, as a tensor in the graph. Any function of torch serves; those here
are the common ones. Their positions are in the user's units. An operator may state

- ``bounds``: (low, high), the box in which it looks at the field;
- ``at(field, rows)``: the measurements of these rows alone, (k, m): a fit can then take a part of
  the measurements in a step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..runs.loop import check_memory

Array = NDArray[np.float64]
FieldFunction = Callable[[Tensor], Tensor]
"""Points (n, d) -> values (n, m)."""


class LineIntegrals(nn.Module):
    r"""Integrals of a field in the plane along parallel lines: tomography with parallel beams.

    The line of the angle :math:`\theta` and the detector position s is
    :math:`(s\cos\theta - t\sin\theta,\; s\sin\theta + t\cos\theta)`: the first coordinate to the
    right, the second one upwards. The field is evaluated at the centres of square cells, between
    which it is interpolated linearly; outside of the box it is 0.

    Args:
        angles: (a,) in degrees.
        detectors: (s,) positions, in units of the coordinates, from the centre of the box.
        size: side of the square box, in the same units; by default so that the outermost detectors
            are on its edge.
        cells: along a side; by default as many as there are detectors.
        center: of the box.

    Shapes:
        output: (a, s), or (a, s, m) of a field of m > 1 outputs.

    Raises:
        ValueError: an argument is empty, not finite or out of range.
    """

    points: Tensor

    def __init__(
        self,
        angles: ArrayLike,
        detectors: ArrayLike,
        *,
        size: float | None = None,
        cells: int | None = None,
        center: Sequence[float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        theta = np.deg2rad(_finite("angles", angles, 1))
        offsets = _finite("detectors", detectors, 1)
        middle = _finite("center", center, 1)
        side = 2 * float(np.abs(offsets).max()) if size is None else float(size)
        count = len(offsets) if cells is None else int(cells)
        if len(middle) != 2 or not 0 < side < math.inf or count < 2:
            raise ValueError(
                f"LineIntegrals needs a center of two coordinates, size > 0 and cells >= 2; got "
                f"{middle.tolist()}, {side:g}, {count}."
            )
        self.shape = (len(theta), len(offsets))
        check_memory(100.0 * self.shape[0] * self.shape[1] * count, "The matrix of the lines")
        self.bounds = (middle - side / 2, middle + side / 2)
        cell = side / count
        axis = np.asarray((np.arange(count) + 0.5) * cell - side / 2, dtype=np.float64)
        self.register_buffer("points", torch.as_tensor(_mesh([axis, axis]) + middle))
        self.matrix = SparseMatrix(_line_matrix(theta, offsets, side, count))

    def forward(self, field: FieldFunction) -> Tensor:
        """The integrals along all lines."""
        return _squeezed(self.matrix(field(self.points)).reshape(*self.shape, -1))


class SparseMatrix(nn.Module):
    """Products with a sparse matrix, in single precision; for operators of one's own, too.

    torch's own backward pass is many times slower than a product with the transpose.

    Args:
        matrix: (r, c), of scipy.

    Shapes:
        input: (c, m).
        output: (r, m).
    """

    def __init__(self, matrix: Any) -> None:
        super().__init__()
        for name, one in (("own", matrix), ("transposed", matrix.T)):
            rows = scipy.sparse.csr_array(one)
            parts = (rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data)
            for part, array in zip(("starts", "columns", "entries"), parts, strict=True):
                dtype = torch.float32 if part == "entries" else torch.int64
                self.register_buffer(f"{name}_{part}", torch.as_tensor(array, dtype=dtype))
        self.shape = matrix.shape

    def _matrix(self, name: str, shape: tuple[int, int]) -> Tensor:
        parts = [self.get_buffer(f"{name}_{p}") for p in ("starts", "columns", "entries")]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                parts[0], parts[1], parts[2], size=shape, check_invariants=False
            )

    def forward(self, values: Tensor) -> Tensor:
        """The product."""
        rows, columns = self.shape
        pair = self._matrix("own", (rows, columns)), self._matrix("transposed", (columns, rows))
        found: Tensor = _Product.apply(values.float(), *pair)  # type: ignore[no-untyped-call]
        return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.pair = matrix, transposed
        return matrix @ values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        matrix, transposed = ctx.pair
        found: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            gradient.contiguous(), transposed, matrix
        )
        return found, None, None


def _line_matrix(theta: Array, offsets: Array, side: float, count: int) -> Any:
    """(lines, cells): what each cell's value adds to each line's integral."""
    cell = side / count
    step = cell / 2
    half = side / math.sqrt(2)
    t = np.arange(-half + step / 2, half, step)
    rows, columns, entries = [], [], []
    for i, angle in enumerate(theta):
        cos, sin = math.cos(angle), math.sin(angle)
        s = offsets[:, None]
        # In cells, from the centre of the first one.
        at = np.stack([s * cos - t * sin, s * sin + t * cos]) / cell + (count - 1) / 2
        low = np.floor(at).astype(int)
        share = at - low
        line = np.broadcast_to(i * len(offsets) + np.arange(len(offsets))[:, None], at.shape[1:])
        for dx in (0, 1):
            for dy in (0, 1):
                x, y = low[0] + dx, low[1] + dy
                weight = np.abs(1 - dx - share[0]) * np.abs(1 - dy - share[1])
                inside = (x >= 0) & (x < count) & (y >= 0) & (y < count)
                rows.append(line[inside])
                columns.append((x * count + y)[inside])
                entries.append(step * weight[inside])
    shape = (len(theta) * len(offsets), count**2)
    entries_at = (np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns)))
    return scipy.sparse.coo_array(entries_at, shape=shape).tocsr()


class Blur(nn.Module):
    """A field on a grid of pixels, convolved with a kernel.

    The measured pixels are a part of a larger field: near the edges the blur brings in what lies
    outside of them, which is a part of the fit, too. Pixel k of an axis is at (k + 0.5) spacing.

    Args:
        kernel: (k,), (k, l) or (k, l, m), of odd lengths.
        shape: of the measured grid.
        spacing: of the pixels, one number or one per axis.

    Shapes:
        output: ``shape``, or (*shape, m) of a field of m > 1 outputs.

    Raises:
        ValueError: an argument is empty, not finite or out of range, or they do not fit.
    """

    points: Tensor
    kernel: Tensor

    def __init__(
        self, kernel: ArrayLike, shape: Sequence[int], *, spacing: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__()
        weights = _finite("kernel", kernel, None)
        self.shape = _grid_shape(shape)
        if weights.ndim != len(self.shape) or weights.ndim > 3:
            raise ValueError(
                f"kernel {weights.shape} and shape {self.shape} differ in their number of axes, or "
                "have more than three."
            )
        if not all(n % 2 for n in weights.shape):
            raise ValueError(f"kernel must have odd lengths, got {weights.shape}: pad it with 0.")
        margin = [n // 2 for n in weights.shape]
        step = _spacing(spacing, weights.ndim)
        self.larger = tuple(n + 2 * m for n, m in zip(self.shape, margin, strict=True))
        axes = [
            (np.arange(n) - m + 0.5) * h for n, m, h in zip(self.larger, margin, step, strict=True)
        ]
        self.register_buffer("points", torch.as_tensor(_mesh(axes)))
        low = np.array([-m * h for m, h in zip(margin, step, strict=True)])
        self.bounds = (low, low + np.array(self.larger) * step)
        flipped = np.flip(weights).copy()  # torch's convolution is a correlation
        self.register_buffer("kernel", torch.as_tensor(flipped, dtype=torch.float32)[None, None])

    def forward(self, field: FieldFunction) -> Tensor:
        """The blurred pixels."""
        values = field(self.points).to(self.kernel.dtype)
        channels = values.T.reshape(-1, 1, *self.larger)
        convolve: Any = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
        found = convolve[len(self.shape) - 1](channels, self.kernel)[:, 0]
        return _squeezed(found.movedim(0, -1))


class BoxMeans(nn.Module):
    """Averages of a field over boxes: what pixels, voxels or exposures see.

    By Gauss-Legendre nodes, exact for polynomials of degree 2 nodes - 1 along each axis.

    Args:
        low, high: (n, d) corners. An axis along which a box has no extent takes one node.
        nodes: along each axis.
        integrate: integrals over the axes with an extent instead of averages.

    Shapes:
        output: (n, m).

    Raises:
        ValueError: an argument is empty, not finite or out of range, or they do not fit.
    """

    low: Tensor
    high: Tensor
    nodes: Tensor
    weights: Tensor

    def __init__(
        self, low: ArrayLike, high: ArrayLike, *, nodes: int = 3, integrate: bool = False
    ) -> None:
        super().__init__()
        first, last = _finite("low", low, 2), _finite("high", high, 2)
        if first.shape != last.shape or not (first <= last).all():
            raise ValueError(
                f"low {first.shape} and high {last.shape} must be of one shape, (n, d), and low <= "
                "high."
            )
        if nodes < 1:
            raise ValueError(f"nodes must be at least 1, got {nodes}.")
        self.bounds = (first.min(axis=0), last.max(axis=0))
        extends = np.asarray((last > first).any(axis=0))
        at, weight = np.polynomial.legendre.leggauss(nodes)
        rules = [(at, weight / 2) if e else (np.zeros(1), np.ones(1)) for e in extends.tolist()]
        self.register_buffer("low", torch.as_tensor(first))
        self.register_buffer("high", torch.as_tensor(last))
        self.register_buffer("nodes", torch.as_tensor(_mesh([a for a, _ in rules])))
        weights = _mesh([w for _, w in rules]).prod(axis=-1)
        self.register_buffer("weights", torch.as_tensor(weights))
        self._extends = np.flatnonzero(extends)
        self._integrate = integrate

    @classmethod
    def of_grid(
        cls, shape: Sequence[int], *, spacing: float | Sequence[float] = 1.0, nodes: int = 3
    ) -> BoxMeans:
        """Averages over all pixels of a grid, in the order of ``image.ravel()``; pixel k of an axis
        is from k to k + 1, times the spacing."""
        sizes = _grid_shape(shape)
        step = _spacing(spacing, len(sizes))
        low = _mesh([np.arange(n) * h for n, h in zip(sizes, step, strict=True)])
        return cls(low, low + step, nodes=nodes)

    def forward(self, field: FieldFunction) -> Tensor:
        """All averages."""
        return self.at(field, torch.arange(len(self.low), device=self.low.device))

    def at(self, field: FieldFunction, rows: Tensor) -> Tensor:
        """The averages of these rows, (k, m)."""
        low, high = self.low[rows], self.high[rows]
        middle, half = (low + high) / 2, (high - low) / 2
        points = middle[:, None] + half[:, None] * self.nodes
        values = field(points.flatten(0, 1)).reshape(*points.shape[:2], -1)
        found: Tensor = (self.weights.to(values)[:, None] * values).sum(dim=1)
        if self._integrate:
            extent = (high - low)[:, torch.as_tensor(self._extends)].prod(dim=1)
            found = found * extent.to(found)[:, None]
        return found


def time_integrals(
    points: ArrayLike, start: ArrayLike, stop: ArrayLike, *, axis: int = -1, nodes: int = 8
) -> BoxMeans:
    """Integrals of a field over intervals of time, at fixed places: doses, exposures, flow sums.

    Args:
        points: (n, d - 1) places, or (n, 0) of a field of time alone.
        start, stop: (n,) of the intervals.
        axis: which coordinate of the field is the time.
        nodes: of the Gauss-Legendre rule.

    Raises:
        ValueError: an argument is empty or not finite, or they do not fit.
    """
    first, last = _finite("start", start, 1), _finite("stop", stop, 1)
    places = np.asarray(points, dtype=float).reshape(len(first), -1)
    if first.shape != last.shape:
        raise ValueError(f"start {first.shape} and stop {last.shape} differ in shape.")
    at = axis % (places.shape[1] + 1)
    low, high = (np.insert(places, at, t, axis=1) for t in (first, last))
    return BoxMeans(low, high, nodes=nodes, integrate=True)


class Fourier(nn.Module):
    """Fourier coefficients of a field on a grid of pixels, some of them: magnetic resonance.

    As ``np.fft.fftn(image, norm="ortho")[mask]``. Pixel k of an axis is at (k + 0.5) spacing.

    Args:
        mask: (H, W), (D, H, W) or (n,): which coefficients are measured, in the order of
            ``np.fft.fftn`` (the lowest frequency first; ``np.fft.ifftshift`` moves it there).
        spacing: of the pixels, one number or one per axis.

    Shapes:
        output: (measured,) complex, or (measured, m) of a field of m > 1 outputs. The sigma of a
        fit is that of the real and of the imaginary part, each.

    Raises:
        ValueError: nothing is measured, or the spacing is out of range.
    """

    points: Tensor
    index: Tensor

    def __init__(self, mask: ArrayLike, *, spacing: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        chosen = np.asarray(mask).astype(bool)
        self.shape = _grid_shape(chosen.shape)
        if not chosen.any():
            raise ValueError("mask is False throughout: nothing is measured.")
        step = _spacing(spacing, chosen.ndim)
        axes = [(np.arange(n) + 0.5) * h for n, h in zip(self.shape, step, strict=True)]
        self.register_buffer("points", torch.as_tensor(_mesh(axes)))
        self.register_buffer("index", torch.as_tensor(np.flatnonzero(chosen)))
        self.bounds = (np.zeros(chosen.ndim), np.array(self.shape) * step)

    def forward(self, field: FieldFunction) -> Tensor:
        """The measured coefficients."""
        values = field(self.points).float()
        image = values.reshape(*self.shape, -1)
        spectrum = torch.fft.fftn(image, dim=tuple(range(len(self.shape))), norm="ortho")
        return _squeezed(spectrum.flatten(0, -2)[self.index])


def _squeezed(values: Tensor) -> Tensor:
    """Without the last axis where that is of one output."""
    return values[..., 0] if values.shape[-1] == 1 else values


def _finite(name: str, values: ArrayLike, ndim: int | None) -> Array:
    """As an array of finite numbers with so many axes, none of them empty.

    Raises:
        ValueError: it is not; names it.
    """
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of numbers.") from None
    if (ndim is not None and found.ndim != ndim) or found.size == 0 or found.ndim == 0:
        axes = "at least one axis" if ndim is None else f"{ndim} axis" if ndim == 1 else "two axes"
        raise ValueError(f"{name} must have {axes} and an entry, got the shape {found.shape}.")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} has entries that are NaN or infinite.")
    return found


def _grid_shape(shape: Sequence[int]) -> tuple[int, ...]:
    found = tuple(int(n) for n in shape)
    if not 1 <= len(found) <= 4 or min(found) < 1:
        raise ValueError(f"shape must be one to four positive integers, got {tuple(shape)}.")
    return found


def _spacing(spacing: float | Sequence[float], axes: int) -> Array:
    found = np.asarray(spacing, dtype=float)
    if found.size not in (1, axes) or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(
            f"spacing must be a positive number, or one for each of {axes} axes; got {spacing}."
        )
    return np.broadcast_to(found, axes).copy()


def _mesh(axes: Sequence[Array]) -> Array:
    """(points, axes) of a grid, the last axis fastest."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
