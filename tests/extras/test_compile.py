"""torch.compile: of the network, of the loss, and around the step."""

from __future__ import annotations

import contextlib
import shutil

import pytest
import torch
from torch import Tensor, nn

from sciml_snr import NoisyLoss, SNRAdam
from tests.cases import batch, flat, network

WHAT = ["network", "loss", "step", "training"]
BACKENDS = ["eager", "aot_eager", "inductor"]


@contextlib.contextmanager
def passes_may_be_repeated():
    """The settings of docs/how-to/processes.md."""
    functorch = torch._functorch.config.patch(donated_buffer=False)
    with functorch, torch._inductor.config.patch(force_disable_caches=True):
        yield


@pytest.fixture(autouse=True)
def compiled_anew():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def fit(what: str = "", backend: str = "", exact: bool = True, steps: int = 5) -> tuple:
    """A few steps, with something of them compiled."""

    def made(name: str, function):
        return torch.compile(function, backend=backend) if name == what else function

    x, y = batch(0)
    net, data = network(), NoisyLoss(0.1)
    torch.manual_seed(1)
    optimizer = SNRAdam(net.parameters(), lr=1e-2, noise=data, coordinates="own")
    called, step = made("network", net), made("step", optimizer.step)

    def loss():
        total = data(called(x), y)
        return total + called(x[:4]).square().mean() if exact else total

    loss = made("loss", loss)

    def train():
        optimizer.zero_grad()
        loss().backward()
        step()

    train = made("training", train)
    for _ in range(steps):
        train()
    assert optimizer.beside_exact is exact
    found = [*net.parameters(), *(optimizer.state[p]["exp_floor"] for p in net.parameters())]
    return flat(found), optimizer


QUICK = [(b, w, e) for b in BACKENDS[:2] for w in WHAT for e in (False, True)]


@pytest.mark.parametrize(
    ("backend", "what", "exact"),
    [
        *QUICK,
        ("inductor", "network", True),
        ("inductor", "step", True),
    ],
)
def test_compiled_it_takes_the_same_steps(backend: str, what: str, exact: bool) -> None:
    assert backend != "inductor" or shutil.which("g++"), "inductor needs a C++ compiler"
    expected, _ = fit(exact=exact)
    with passes_may_be_repeated():
        found, _ = fit(what, backend, exact)
    if backend != "inductor" or what == "step":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("setting", ["none", "donated_buffer alone"])
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_backward_pass_that_can_be_made_once_only_is_refused(backend: str, setting: str) -> None:
    """With the one setting alone, what torch's cache has from before is given out all the same: the
    gradients were wrong, and nothing said so."""
    has_one = torch._functorch.config.patch(donated_buffer=setting == "none")
    with (
        has_one,
        pytest.raises(RuntimeError, match=r"donated_buffer = False.*force_disable_caches"),
    ):
        fit("network", backend)


def fit_without_noise(compiled: bool) -> Tensor:
    x, y = batch(0)
    net = network()
    optimizer = SNRAdam(net.parameters(), lr=1e-2)
    called = torch.compile(net) if compiled else net
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.mse_loss(called(x), y).backward()
        optimizer.step()
    return flat(net.parameters())


def test_a_network_without_noise_is_compiled_like_any() -> None:
    expected = fit_without_noise(compiled=False)
    torch.testing.assert_close(fit_without_noise(compiled=True), expected, rtol=1e-4, atol=1e-6)
