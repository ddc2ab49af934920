"""Two processes that train one network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sciml_snr import SNRSOAP, NoisyLoss, SampledLoss, SNRAdam
from tests.cases import batch, flat, network
from tests.pair import Pair, pair

STEPS = 40
CLOSE = 1e-6
"""How near two processes come to one, in float64."""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with pair(tmp_path_factory.mktemp("pair")) as found:
        yield found


class Told(NoisyLoss):
    """Its signs go by the datum: those of two processes are the halves of those of one."""

    def __init__(self, *args, part: slice, **options) -> None:
        super().__init__(*args, **options)
        self.part, self.calls = part, 0

    def _signs(self, shape, like, seed):
        self.calls += 1
        rng = torch.Generator().manual_seed(self.calls)
        signs = torch.randint(0, 2, (16, *shape[1:]), generator=rng).to(like)
        return signs[self.part].mul(2).sub(1)


def narrow_network() -> nn.Sequential:
    """One whose first gradients have full rank. In directions that they lack an eigenbasis is what
    rounding makes of it, and rounding is another in two processes."""
    torch.manual_seed(0)
    layers = [nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)]
    return nn.Sequential(*layers).double()


def part_of(rank: int | None) -> slice:
    """The rows of a process; all of them for one alone."""
    return slice(None) if rank is None else slice(8 * rank, 8 * rank + 8)


def physics(net: nn.Module, x: Tensor) -> Tensor:
    """An exact term with a second derivative."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
    return (curve[:, :1] + 9 * net(x)).square().mean() / 81


def boundary(net: nn.Module, x: Tensor) -> Tensor:
    """An exact term without derivatives: those of a sharded network torch does not make."""
    return net(x * torch.tensor([1.0, 0.0], dtype=x.dtype)).square().mean()


def found_by(net: nn.Module, optimizer: SNRAdam) -> dict[str, Tensor]:
    """All parameters and what is averaged of them, whole."""

    def whole(x):
        return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()

    params = list(net.parameters())
    names = ("exp_avg", "exp_avg_sq", "exp_floor", "exp_grad_var", "exp_avg_noisy")
    found = {
        name: flat(whole(optimizer.state[p][name]) for p in params)
        for name in names
        if all(name in optimizer.state[p] for p in params)
    }
    stats = torch.tensor(optimizer.gate_stats(), dtype=torch.float64)
    return {**found, "params": flat(map(whole, params)), "stats": stats}


def fit(
    rank: int | None,
    kind: str = "own",
    wrap: str = "ddp",
    exact: bool = True,
    noisy: bool = True,
    steps: int = STEPS,
    sigma: float = 0.1,
    population: float | None = None,
    accumulate: bool = False,
    clip: float = 0.0,
    **ddp,
) -> dict[str, Tensor]:
    """A network fitted by one process, or by two, to halves of its data."""
    torch.manual_seed(rank or 0)
    net = narrow_network() if kind == "eigen" else network(torch.float64)
    data = Told(sigma, part=part_of(rank), population=population)
    called = whole_net = net
    more = {}
    if rank is not None and wrap == "ddp":
        called = DistributedDataParallel(net, **ddp)
    elif rank is not None:
        for layer in net:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        called = fully_shard(net)
        more = {"network": net} if noisy else {}
    cls = SNRSOAP if kind == "eigen" else SNRAdam
    own = {} if kind == "eigen" else {"coordinates": kind}
    noise = data if noisy else None
    optimizer = cls(whole_net.parameters(), lr=1e-2, noise=noise, **own, **more)
    for t in range(steps):
        x, y = (z[part_of(rank)] for z in batch(t if population else 0, dtype=torch.float64))
        optimizer.zero_grad()
        halves = [(x, y)]
        loss = sum(data(called(x), y) for x, y in halves)
        if exact:
            term = physics if wrap == "ddp" else boundary
            loss = loss + term(called, batch(-t - 1, dtype=torch.float64)[0][part_of(rank)])
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    return found_by(net, optimizer)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        apart = (found[name] - value).abs().max() / value.abs().max().clamp_min(1e-300)
        print(f"{name} {apart:.1e}", end="  ")
        assert apart < CLOSE, name


# DistributedDataParallel ------------------------------------------------------------------------

FITS = [
    dict(kind="own", exact=False),
    dict(kind="own", exact=True),
    dict(kind="eigen", exact=False),
    dict(kind="eigen", exact=True),
    dict(kind="own", noisy=False),
    dict(kind="eigen", noisy=False),
    dict(kind="own", population=64),
    dict(kind="own", clip=0.05),
    dict(kind="own", sigma=1.0, gradient_as_bucket_view=True),
    dict(kind="own", find_unused_parameters=True),
]


@pytest.mark.parametrize("options", FITS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()))
def test_two_processes_are_one_with_all_the_data(two: Pair, options: dict) -> None:
    first, second = two(fit, **options)
    assert isinstance(first, dict), first
    for name in first:
        assert torch.equal(first[name], second[name]), name
    ddp = {"gradient_as_bucket_view", "find_unused_parameters"}
    assert_close(first, fit(None, **{k: v for k, v in options.items() if k not in ddp}))


# fully_shard ------------------------------------------------------------------------------------

SHARDED = [
    dict(exact=False),
    dict(exact=True),
    dict(noisy=False),
    dict(exact=True, clip=0.05),
    dict(population=64),
]


@pytest.mark.parametrize("options", SHARDED, ids=str)
def test_sharded_parameters_are_stepped_like_whole_ones(two: Pair, options: dict) -> None:
    first, second = two(fit, wrap="shards", **options)
    assert isinstance(first, dict), first
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert_close(first, fit(None, wrap="shards", **options))
