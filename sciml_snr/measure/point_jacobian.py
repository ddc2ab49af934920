"""Derivatives of a network's outputs, point by point, by all parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..jacobian import joined


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

    Every point has its own copy of the parameters, so that one backward pass an output is enough.

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
    state = {**dict(net.named_buffers()), **dict(net.named_parameters())}
    copies = {
        name: p.detach().expand(len(points), *p.shape).clone().requires_grad_()
        for name, p in own.items()
    }

    def one(mine: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(net, {**state, **mine}, (point[None],))[0]  # type: ignore[no-any-return]

    def every(x: Tensor) -> Tensor:
        return vmap(one)(copies, x)

    try:
        outputs = every(points) if by is None else by.values(every, points)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"The network does not take points one by one: {str(error).splitlines()[0]}"
        ) from error
    rest = outputs.shape[1:]
    flat = outputs.flatten(1)
    columns = []
    for j in range(flat.shape[1]):
        found = torch.autograd.grad(
            flat[:, j].sum(), list(copies.values()), retain_graph=True, allow_unused=True
        )
        parts = dict(zip(copies, found, strict=True))
        mine = [parts.get(names.get(id(p), "")) for p in params]
        columns.append(joined(mine, params, len(points)))
    return torch.stack(columns, 1).reshape(len(points), *rest, -1)
