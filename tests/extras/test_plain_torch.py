"""The plain loop, which the frameworks are compared with."""

from __future__ import annotations

import plain_torch
import torch
from oscillator import SIGMA, Network, measurements
from torch import nn

import sciml_snr
from tests.cases import assert_same_bits
from tests.extras.running import (
    assert_noise_is_kept_out,
    floors,
    printed,
    run_page,
    states,
)


def test_noise_is_kept_out() -> None:
    assert_noise_is_kept_out(printed("plain_torch.py"))


def test_the_page_runs(tmp_path) -> None:
    x, y = measurements()
    path = tmp_path / "run.pt"
    space = run_page(
        "plain_torch.md", plain_torch, net=Network(), x=x, y=y, steps=3, batches=4, path=path
    )
    net = Network()
    optimizer = sciml_snr.SNRAdam(net.parameters(), noise=sciml_snr.NoisyLoss(SIGMA))
    for own, saved in zip((net, optimizer), torch.load(path), strict=True):
        own.load_state_dict(saved)
    assert optimizer.beside_exact is True
    assert_same_bits(states(net, optimizer), states(space["net"], space["optimizer"]))


def test_batches_make_the_floor_of_all_data_scaled_by_the_clipping() -> None:
    """In the mean over draws: each step's floor at the same network, the gradient's norm as 1."""
    norm, whole, batched = 0.0, [], []
    for seed in range(150):
        for sums, batches in ((whole, 1), (batched, 4)):
            x, y = measurements()
            net = Network()
            torch.manual_seed(seed)
            data = sciml_snr.NoisyLoss(SIGMA, population=len(x))
            optimizer = sciml_snr.SNRAdam(net.parameters(), lr=0, noise=data)
            for part, target in zip(x.chunk(batches), y.chunk(batches), strict=True):
                (data(net(part), target) / batches).backward()
            if batches > 1:
                norm = float(nn.utils.clip_grad_norm_(net.parameters(), 0.1))
            optimizer.step()
            sums.append(floors(net, optimizer).mean())
    assert norm > 0.2
    ratio = float(sum(batched) / sum(whole)) / (0.1 / norm) ** 2
    assert 0.8 < ratio < 1.25
