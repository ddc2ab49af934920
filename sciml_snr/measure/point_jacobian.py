"""Derivatives of a network's outputs, point by point, by all parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..jacobian import joined


class PointCopies:
    """A network in which each of n points has its own copy of the parameters.

    One backward pass through a sum over points then gives the gradient of every point.

    Args:
        net: treats points one by one.
        own: the parameters that have copies, by their names in the network.
        count: n.
        prepare: called before a point goes through, with what belongs to it.

    Attributes:
        copies: (n, *shape) of each, in the graph.
    """

    def __init__(
        self,
        net: nn.Module,
        own: Mapping[str, Tensor],
        count: int,
        prepare: Callable[..., None] | None = None,
    ) -> None:
        self.copies = {
            name: p.detach().expand(count, *p.shape).clone().requires_grad_()
            for name, p in own.items()
        }
        self._net, self._prepare = net, prepare
        self._state = {**dict(net.named_buffers()), **dict(net.named_parameters())}

    def __call__(self, points: Tensor, *belongs: Tensor) -> Tensor:
        """Outputs (n, m) at points (n, d), and what belongs to each."""

        def one(own: dict[str, Tensor], point: Tensor, *its: Tensor) -> Tensor:
            if self._prepare is not None:
                self._prepare(*its)
            return functional_call(self._net, {**self._state, **own}, (point[None],))[0]  # type: ignore[no-any-return]

        return vmap(one)(self.copies, points, *belongs)


class Derivatives:
    """Instead of the outputs (n, m): their derivatives by the coordinates, (n, m, d)."""

    @torch.enable_grad()
    def values(self, net: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
        """In the graph where the network's parameters are."""
        x = points.detach().clone().requires_grad_()
        outputs = net(x)
        columns = [
            torch.autograd.grad(outputs[:, j].sum(), x, create_graph=True)[0]
            for j in range(outputs.shape[1])
        ]
        return torch.stack(columns, 1)


@torch.enable_grad()
def point_jacobian(
    net: nn.Module, params: Sequence[Tensor], points: Tensor, by: Derivatives | None = None
) -> Tensor:
    """Gradients of a network's outputs, or of their derivatives, at points.

    Args:
        net: treats points one by one.
        params: (P in all); those that are not the network's have the gradient 0.
        points: (n, d).
        by: None: outputs; or their derivatives.

    Returns:
        (n, m, P), or (n, m, d, P).

    Raises:
        ValueError: the network does not work point by point.
    """
    names = {id(p): name for name, p in net.named_parameters()}
    own = {names[id(p)]: p for p in params if id(p) in names}
    made = PointCopies(net, own, len(points))
    try:
        outputs = made(points) if by is None else by.values(made, points)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"The network does not take points one by one: {str(error).splitlines()[0]}"
        ) from error
    rest = outputs.shape[1:]
    flat = outputs.flatten(1)
    columns = []
    for j in range(flat.shape[1]):
        found = torch.autograd.grad(
            flat[:, j].sum(), list(made.copies.values()), retain_graph=True, allow_unused=True
        )
        parts = dict(zip(made.copies, found, strict=True))
        mine = [parts.get(names.get(id(p), "")) for p in params]
        columns.append(joined(mine, params, len(points)))
    return torch.stack(columns, 1).reshape(len(points), *rest, -1)
