"""Two processes that train one network."""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sciml_snr
from sciml_snr import (
    SNRSOAP,
    NoisyLoss,
    NoisyTerm,
    SampledLoss,
    SNRAdam,
    SNRGaussNewton,
    exact_label_noise,
    exact_sampling_noise,
)
from sciml_snr.fields import fit_field, fit_image, fit_sdf
from tests.cases import batch, flat, network
from tests.loops import assert_unbiased, squared_draws, still
from tests.pair import Pair, pair

STEPS = 25
CLOSE = 1e-10
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
    scale: float = 0.0,
    floor_every: int = 1,
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
    own |= {"floor_every": floor_every}
    optimizer = cls(whole_net.parameters(), lr=1e-2, noise=noise, **own, **more)
    for t in range(steps):
        x, y = (z[part_of(rank)] for z in batch(t if population else 0, dtype=torch.float64))
        optimizer.zero_grad()
        exact_x = batch(-t - 1, dtype=torch.float64)[0][part_of(rank)]
        term = physics if wrap == "ddp" else boundary
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=bool(scale))
        if exact and accumulate:  # two backward passes, of which the first leaves its own gradients
            with called.no_sync() if rank is not None else contextlib.nullcontext():
                scaler.scale(term(called, exact_x)).backward()
        loss = data(called(x), y)
        if exact and not accumulate:
            loss = loss + term(called, exact_x)
        scaler.scale(loss).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        scaler.step(optimizer)
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
    dict(kind="own", scale=1024.0),
    dict(kind="own", accumulate=True),
    dict(kind="own", floor_every=3),
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


def draws(rank: int, seeds: tuple[int, int], kind: str, n: int = 240) -> tuple[Tensor, Tensor]:
    """Squares of draws in float64, and the signs of those of the first layer's last bias."""
    net = network(torch.float64)
    torch.manual_seed(seeds[rank])
    data = NoisyLoss(0.1) if kind == "label" else SampledLoss()
    optimizer = still(net.parameters(), data)
    torch.manual_seed(seeds[rank])
    called = DistributedDataParallel(net)
    x, y = (z[part_of(rank)] for z in batch(0, dtype=torch.float64))
    return squared_draws(
        optimizer, list(net.parameters()), lambda: data(called(x), y).backward(), n
    )


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["seeded alike", "seeded apart"])
def test_label_draws_of_two_processes_are_unbiased(two: Pair, seeds: tuple[int, int]) -> None:
    """Ranks that drew the same signs would double the products of their gradients."""
    first, second = two(draws, seeds, "label")
    assert torch.equal(first, second)
    net = network(torch.float64)
    x, y = batch(0, dtype=torch.float64)
    exact = exact_label_noise(net.parameters(), [NoisyTerm(net(x) - y, 0.1)])
    assert_unbiased(first, flat(exact.values()))


def test_sampling_draws_of_two_processes_are_unbiased(two: Pair) -> None:
    first, second = two(draws, (0, 0), "sampling")
    assert torch.equal(first, second)
    net = network(torch.float64)
    x, y = batch(0, dtype=torch.float64)
    losses = (net(x) - y).square()[:, 0]
    params = list(net.parameters())
    parts = [exact_sampling_noise(params, losses[part_of(rank)]) for rank in range(2)]
    expected = sum(flat(part.values()) for part in parts) / 4
    assert_unbiased(first, expected * (1 - 0.9) / (1 + 0.9))


def lonely(rank: int) -> dict[str, Tensor]:
    """Only the first process has noisy data: all rows, at half the weight that a mean gives."""
    net = network(torch.float64)
    data = Told(0.1, part=slice(None))
    called = DistributedDataParallel(net)
    optimizer = SNRAdam(net.parameters(), lr=1e-2, noise=data, coordinates="own")
    x, y = batch(0, dtype=torch.float64)
    for t in range(STEPS):
        optimizer.zero_grad()
        exact = physics(called, batch(-t - 1, dtype=torch.float64)[0][part_of(rank)])
        (exact + 2 * data(called(x), y) if rank == 0 else exact).backward()
        optimizer.step()
    return found_by(net, optimizer)


def test_one_process_may_have_all_the_data(two: Pair) -> None:
    first, second = two(lonely)
    assert torch.equal(first["params"], second["params"])
    assert_close(first, fit(None))


def resumed(rank: int, steps: tuple[int, ...]) -> dict[str, Tensor]:
    """Some steps; then a new optimizer with the state of the old one, and some more."""
    torch.manual_seed(0)
    net, state = network(), None
    called = DistributedDataParallel(net)
    x, y = (z[part_of(rank)] for z in batch(0))
    for n in steps:
        data = NoisyLoss(0.1)
        optimizer = SNRSOAP(net.parameters(), lr=1e-2, noise=data)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(n):
            optimizer.zero_grad()
            (data(called(x), y) + physics(called, x)).backward()
            optimizer.step()
        state = optimizer.state_dict()
    return found_by(net, optimizer)


def test_resumed_from_a_state_it_takes_the_same_steps(two: Pair) -> None:
    whole, _ = two(resumed, (20,))
    first, second = two(resumed, (7, 13))
    for name in whole:
        assert torch.equal(first[name], whole[name]) and torch.equal(second[name], whole[name])


def misuse(rank: int, how: str) -> None:
    """A first step that cannot be one of two processes that train together."""
    torch.manual_seed(rank if how == "parameters" else 0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    data = NoisyLoss(0.1 * (1 + rank) if how == "noise" else 0.1)
    more = {"process_group": False} if how.startswith("alone") else {}
    optimizer = SNRAdam(net.parameters(), noise=data, **more)
    has_own = how in ("parameters", "gradients", "alone")
    called = net if has_own else DistributedDataParallel(net, static_graph=how == "static graph")
    x, y = (z if how == "data" else z[part_of(rank)] for z in batch(0))
    for _ in range(2 if how == "steps" and rank else 1):
        data(called(x), y).backward()
        if how == "steps":
            optimizer.state["noise"]["steps"] = rank
        optimizer.step()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("noise", "declared other noise"),
        ("parameters", "hold other parameters"),
        ("gradients", "hold other gradients"),
        ("static graph", "without static_graph=True"),
        ("data", "all have the same data"),
    ],
)
def test_what_is_no_common_training_is_refused_in_all(two: Pair, how: str, message: str) -> None:
    for answer in two(misuse, how):
        assert answer.startswith("RuntimeError") and message in answer
        assert "process_group=False" in answer


def wrapped_for_gauss_newton(rank: int) -> None:
    SNRGaussNewton(DistributedDataParallel(network()))


def test_gauss_newton_takes_no_wrapped_network(two: Pair) -> None:
    for answer in two(wrapped_for_gauss_newton):
        assert answer.startswith("TypeError") and "all residual rows in one process" in answer


def test_processes_may_train_networks_of_their_own(two: Pair) -> None:
    assert two(misuse, "alone") == [None, None]


def test_a_checkpoint_loaded_by_one_process_alone_is_refused(two: Pair) -> None:
    for answer in two(one_has_loaded):
        assert "taken other numbers of steps: 1, 2" in answer


def one_has_loaded(rank: int) -> None:
    net = network()
    called = DistributedDataParallel(net)
    x, y = (z[part_of(rank)] for z in batch(0))
    data = NoisyLoss(0.1)
    state = None
    for t in range(3):
        optimizer = SNRAdam(net.parameters(), noise=data)
        if state is not None and (rank or t < 2):
            optimizer.load_state_dict(state)
        elif state is not None:
            state["state"]["noise"]["steps"] = 1
            optimizer.load_state_dict(state)
        data(called(x), y).backward()
        optimizer.step()
        state = optimizer.state_dict()


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


def broken(rank: int, what: str, nonfinite: str) -> tuple[str, bool]:
    """A second step, with something wrong in the part of the second process alone."""
    net = network(torch.float64)
    for layer in net:
        fully_shard(layer)
    fully_shard(net)
    data = Told(0.1, part=part_of(rank))
    options = dict(nonfinite=nonfinite, coordinates="own", network=net)
    optimizer = SNRAdam(net.parameters(), noise=data, **options)
    x, y = (z[part_of(rank)] for z in batch(0, dtype=torch.float64))
    message = ""
    for t in range(2):
        optimizer.zero_grad()
        data(net(x), y).backward()
        before = [p.full_tensor() for p in net.parameters()], optimizer.state["noise"]["steps"]
        if t and rank:
            grad = next(net.parameters()).grad.to_local()
            grad[0, 0] = math.nan if what == "nan" else grad[0, 0] + 10
        try:
            optimizer.step()
        except Exception as error:
            message = str(error)
    after = [p.full_tensor() for p in net.parameters()], optimizer.state["noise"]["steps"]
    return message, before[1] == after[1] and torch.equal(flat(before[0]), flat(after[0]))


@pytest.mark.parametrize(
    ("what", "nonfinite", "message"),
    [
        ("nan", "raise", "NaN or infinite"),
        ("nan", "skip", ""),
        ("changed", "raise", "was changed between backward() and step()"),
    ],
)
def test_a_part_that_is_wrong_stops_all(two: Pair, what: str, nonfinite: str, message: str) -> None:
    first, second = two(broken, what, nonfinite)
    assert first[1] and second[1]
    assert message in second[0]
    assert ("Process 1 has refused this step" in first[0]) == bool(message)


def saved(rank: int, steps: tuple[int, ...]) -> dict[str, Tensor]:
    """Some steps; then a new optimizer with the state that this process has saved of its own."""
    net, file = network(torch.float64), io.BytesIO()
    fully_shard(net)
    x, y = (z[part_of(rank)] for z in batch(0, dtype=torch.float64))
    for n in steps:
        data = NoisyLoss(0.1)
        torch.manual_seed(0)
        optimizer = SNRAdam(net.parameters(), lr=1e-2, noise=data, network=net, coordinates="own")
        if file.tell():
            file.seek(0)
            optimizer.load_state_dict(torch.load(file))
        for _ in range(n):
            optimizer.zero_grad()
            (data(net(x), y) + boundary(net, x)).backward()
            optimizer.step()
        torch.save(optimizer.state_dict(), file)
    return found_by(net, optimizer)


def test_parts_resumed_from_a_file_take_the_same_steps(two: Pair) -> None:
    whole, _ = two(saved, (20,))
    first, second = two(saved, (7, 13))
    for name in whole:
        assert torch.equal(first[name], whole[name]) and torch.equal(second[name], whole[name])


def shard_misuse(rank: int, how: str) -> None:
    """What cannot be done with sharded parameters."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    fully_shard(net)
    data = NoisyLoss(0.1)
    if how == "no network":
        SNRAdam(net.parameters(), noise=data)
    elif how == "SNRSOAP":
        SNRSOAP(net.parameters(), noise=data, network=net)
    elif how == "per tensor":
        SNRAdam(net.parameters(), noise=data, network=net, reduction="per_tensor")
    elif how == "Gauss-Newton":
        SNRGaussNewton(net)
    elif how == "another group":
        SNRAdam(net.parameters(), noise=data, network=net, process_group=False)
    else:
        optimizer = SNRAdam(net.parameters(), noise=data, network=net)
        x, y = (z[part_of(rank)] for z in batch(0))
        (data(net(x), y) + boundary(net, x)).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no network", "network=net"),
        ("another group", "process_group=mesh.get_group()"),
        ("SNRSOAP", "no eigenbasis: SNRSOAP"),
        ("per tensor", "per_tensor' needs whole tensors"),
        ("exact", "which exact terms beside noisy ones call for"),
        ("Gauss-Newton", "SNRGaussNewton needs the whole"),
    ],
)
def test_what_cannot_be_done_with_parts_is_refused(two: Pair, how: str, message: str) -> None:
    for answer in two(shard_misuse, how):
        assert message in answer


# Fits -------------------------------------------------------------------------------------------


def sphere() -> np.ndarray:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True) + 0.01 * rng.normal(size=(200, 3))


def fit_of(kind: str, out: Path | None, steps: int, resume: bool = False):
    rng = np.random.default_rng(0)
    options = dict(steps=steps, out=out, resume=resume, progress=False)
    if kind == "field":
        x = rng.uniform(size=(64, 2))
        return fit_field(x, np.sin(6 * x[:, 0]) + 0.1 * rng.normal(size=64), sigma=0.1, **options)
    if kind == "image":
        return fit_image(rng.normal(size=(24, 24)), sigma=1.0, **options)
    return fit_sdf(sphere(), sigma=0.01, **options)


def fit_in_folder(rank: int, kind: str, folder: Path, steps: int, resume: bool) -> Tensor:
    out = folder / kind
    found = fit_of(kind, out, steps, resume)
    torch.distributed.barrier()
    return flat(found.network.parameters()), sorted(path.name for path in out.iterdir())


@pytest.mark.parametrize("kind", ["field", "image", "sdf"])
def test_every_process_makes_the_same_fit_and_the_first_writes_it(
    two: Pair, kind: str, tmp_path: Path
) -> None:
    (first, files), (second, _) = two(fit_in_folder, kind, tmp_path, 2, False)
    assert torch.equal(first, second)
    assert {"checkpoint.pt", "config.json", "fit.npz", "metrics.csv", "summary.json"} <= set(files)
    rows = (tmp_path / kind / "metrics.csv").read_text().splitlines()
    assert len(rows) == len(set(rows)) == 3
    if kind == "image":
        (first, _), (second, _) = two(fit_in_folder, kind, tmp_path, 4, True)
        fit_of(kind, tmp_path / "alone", 2)
        alone = flat(fit_of(kind, tmp_path / "alone", 4, True).network.parameters())
        assert torch.equal(first, alone) and torch.equal(second, alone)


def test_torchrun_says_which_process_is_the_first(monkeypatch, tmp_path: Path) -> None:
    """It need not have made a process group."""
    monkeypatch.setenv("RANK", "1")
    fit_of("image", tmp_path / "of no torchrun", 2)
    assert (tmp_path / "of no torchrun" / "fit.npz").exists()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    fit_of("image", tmp_path / "second", 2)
    assert not (tmp_path / "second").exists()
    monkeypatch.setenv("RANK", "0")
    fit_of("image", tmp_path / "first", 2)
    assert (tmp_path / "first" / "fit.npz").exists()


# The page ---------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs/how-to/processes.md").read_text()


def on_the_page(rank: int, which: str, folder: Path) -> Tensor:
    """Run the page's code that has this word in it."""
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if which in c)
    x, y = batch(0)
    net = network()
    space = dict(vars(sys.modules[__name__]), net=net, x=x, y=y, steps=3, folder=folder, rank=rank)
    space |= dict(sciml_snr=sciml_snr, device="cpu", physics=lambda net: physics(net, x))
    if which == "fully_shard":
        space |= dict(x=x[part_of(rank)], y=y[part_of(rank)])
    if which == "GradScaler":
        data = NoisyLoss(0.1)
        optimizer = SNRAdam(net.parameters(), noise=data, process_group=False)
        space |= dict(data=data, optimizer=optimizer, steps=9)
    exec(compile(code, "processes.md", "exec", dont_inherit=True), space)
    assert space["optimizer"].state["noise"]["steps"] >= 3
    return found_by(net, space["optimizer"])["params"]


@pytest.mark.parametrize("which", ["DistributedDataParallel", "fully_shard", "GradScaler"])
def test_the_page_runs(two: Pair, which: str, tmp_path: Path) -> None:
    first, second = two(on_the_page, which, tmp_path)
    assert isinstance(first, Tensor), first
    assert torch.equal(first, second)


def test_the_page_is_linked() -> None:
    assert "(processes.md)" in (Path(__file__).parents[1] / "docs/how-to/index.md").read_text()
