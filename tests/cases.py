"""Seeded cases that several test files share. Step t sees the same data in every run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from sciml_snr import SNRAdam
from sciml_snr.handover import KEY, Facts
from sciml_snr.source import NoiseSource

GATED = ["hard", "soft", "snr", "stein"]
GATES = ["none", *GATED]
FLOATS = [torch.float32, torch.float64, torch.bfloat16]


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """A small tanh network from R^2 to R."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)
    ).to(dtype)


def batch(t: int, n: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Points (n, 2) and noisy values (n, 1) of sin(3 x) y for step t."""
    rng = torch.Generator().manual_seed(t)
    x = torch.rand(n, 2, generator=rng)
    y = torch.sin(3 * x[:, :1]) * x[:, 1:] + 0.1 * torch.randn(n, 1, generator=rng)
    return x.to(dtype), y.to(dtype)


def train(net, optimizer, steps: int, start: int = 0, scheduler=None) -> None:
    """Steps start, ..., start + steps - 1 of fitting ``batch``."""
    dtype = next(net.parameters()).dtype
    for t in range(start, start + steps):
        x, y = batch(t, dtype=dtype)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    """Parameters of all the awkward shapes: a number, a vector, an empty and a strided matrix."""
    rng = torch.Generator().manual_seed(seed)
    values = [
        _randn((), dtype, rng),
        _randn((5,), dtype, rng),
        _randn((0, 3), dtype, rng),
        _randn((4, 3), dtype, rng).T,
        _randn((2, 3, 2, 2), dtype, rng).to(memory_format=torch.channels_last),
    ]
    return [nn.Parameter(value) for value in values]


def gradients(params, t: int) -> list[Tensor]:
    """Signal and noise: N(0.5, 1) for every element, anew at every step t."""
    rng = torch.Generator().manual_seed(100 + t)
    return [_randn(p.shape, p.dtype, rng) + 0.5 for p in params]


def feed(optimizer, steps: int, start: int = 0, **step_options) -> None:
    """Steps start, ..., start + steps - 1 on ``gradients``."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(start, start + steps):
        for p, g in zip(params, gradients(params, t), strict=True):
            p.grad = g
        optimizer.step(**step_options)


def own_adam(params, *args, **options) -> SNRAdam:
    """SNRAdam in the parameters' own coordinates, whatever stands beside the noisy terms."""
    return SNRAdam(params, *args, coordinates="own", **options)


def snapshot(optimizer) -> list:
    """Copies of all parameters and of all their state."""
    return [
        (
            p.detach().clone(),
            {
                key: x.clone() if isinstance(x, Tensor) else x
                for key, x in optimizer.state.get(p, {}).items()
            },
        )
        for group in optimizer.param_groups
        for p in group["params"]
    ]


class Told(NoiseSource):
    """A noisy loss that hands over the draws and the noisy terms' gradients that it is told."""

    def describe(self) -> list[str]:
        return ["Told"]

    def tell(
        self,
        draws: Mapping[Tensor, Tensor] | None,
        noisy: Mapping[Tensor, Tensor] | None = None,
        facts: Facts = Facts(),  # noqa: B008
    ) -> None:
        """As a backward pass would."""
        for own in self.handovers:
            own.receive(
                self,
                None if draws is None else dict(draws),
                None if noisy is None else dict(noisy),
                facts,
            )


def feed_noise(optimizer, told: Told, steps: int, start: int = 0, beside_exact=False) -> None:
    """Steps on ``gradients``, with draws as large; the noisy terms' gradients are others, or
    (``beside_exact=False``) the whole of them."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(start, start + steps):
        grads = gradients(params, t)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        noisy = gradients(params, 2000 + t) if beside_exact else grads
        draws = gradients(params, 1000 + t)
        told.tell(dict(zip(params, draws, strict=True)), dict(zip(params, noisy, strict=True)))
        optimizer.step()


def noise_state(optimizer) -> dict:
    """A copy of what the optimizer's state holds beside that of its parameters."""
    return dict(optimizer.state.get(KEY, {}))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all entries."""
    return torch.cat([t.detach().flatten() for t in tensors])


def assert_refused_by_name(cls, name: str, value, option: str | None = None) -> None:
    """An optimizer's option, given for all, for a group, for a group that comes later.

    ``option`` is what it is called where it is a part of one, such as a field of the gate.
    """
    option = option or name
    with pytest.raises(ValueError, match=name):
        cls(parameters(), **{option: value})
    with pytest.raises(ValueError, match=name):
        cls([{"params": parameters(), option: value}])
    optimizer = cls(parameters())
    with pytest.raises(ValueError, match=name):
        optimizer.add_param_group({"params": parameters(), option: value})
    assert len(optimizer.param_groups) == 1


def assert_same_bits(actual, expected) -> None:
    """Equal dtypes, shapes and values, in tensors or nested lists and dicts of them."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def assert_plain(x) -> None:
    """Only tensors and primitives, all the way down."""
    if type(x) is dict:
        for key, value in x.items():
            assert type(key) in (str, int)
            assert_plain(value)
    elif type(x) in (list, tuple):
        for value in x:
            assert_plain(value)
    else:
        assert type(x) in (torch.Tensor, int, float, bool, str, type(None)), type(x)


def through_a_file(x):
    """What torch reads back without running code from the file."""
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _randn(shape, dtype: torch.dtype, rng: torch.Generator) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, dtype=wide, generator=rng).to(dtype)
