"""The plain loop, which the frameworks are compared with."""

from __future__ import annotations

import torch
from oscillator import SIGMA, Network, measurements
from torch import nn

import sciml_snr
from tests.extras.running import assert_noise_is_kept_out, floors, printed


def test_noise_is_kept_out() -> None:
    assert_noise_is_kept_out(printed("plain_torch.py"))


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
