"""Running examples and pages as a reader does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sciml_snr.handover import KEY

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGES = ROOT / "docs" / "how-to"
ERRORS = re.compile(r"error against the truth: Adam ([\d.]+), SNRAdam ([\d.]+)")


def python(*arguments: Any) -> subprocess.Popen[str]:
    """A Python that finds the examples."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{EXAMPLES}"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=found,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def printed(example: str, *arguments: str) -> str:
    """What an example prints."""
    process = python(EXAMPLES / example, *arguments)
    found, _ = process.communicate(timeout=300)
    assert process.returncode == 0, found
    return found


def assert_noise_is_kept_out(text: str) -> None:
    """SNRAdam ends much nearer to the truth than Adam, and knows which terms are exact."""
    adam, snr = map(float, ERRORS.search(text).groups())
    assert snr < 0.8 * adam
    assert "noisy: NoisyLoss, mse, sigma 0.5" in text
    assert "exact: what else is in the loss" in text


def run_page(name: str, example: ModuleType, **more: Any) -> dict[str, Any]:
    """Run all code of a page, in the example's name space and what else it takes for granted."""
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / name).read_text(), flags=re.DOTALL)
    assert blocks
    space = {**vars(example), **more}
    for block in blocks:
        exec(compile(block, name, "exec", dont_inherit=True), space)
    return space


def states(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Parameters with their states, by name, and what is of no parameter."""
    found = {
        name: {"value": p.detach(), **optimizer.state[p]} for name, p in net.named_parameters()
    }
    return {**found, KEY: optimizer.state[KEY]}


def floors(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    """The floor of all parameters."""
    return torch.cat([optimizer.state[p]["exp_floor"].flatten() for p in net.parameters()])
