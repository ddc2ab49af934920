"""The core needs torch, numpy and the import hook alone; DeepXDE is left as it is."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {
            "scipy", "skimage", "deepxde", "matplotlib", "trimesh", "imageio", "tifffile", "pywt",
            "joblib", "rich", "typer",
        }:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Refuse())
"""


def run(code: str) -> str:
    """What a Python of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_needs_torch_numpy_and_the_import_hook_alone():
    trained = """
import torch, sciml_snr
data = sciml_snr.NoisyLoss(0.1, "huber")
for optimizer in (sciml_snr.SNRAdam, sciml_snr.SNRSOAP):
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = optimizer(net.parameters(), noise=data, gate=sciml_snr.Gate("hard", z=2.0))
    for _ in range(3):
        optimizer.zero_grad()
        data(net(torch.ones(5, 2)), torch.zeros(5, 1)).backward()
        optimizer.step()
    print(optimizer.describe())
term = sciml_snr.NoisyTerm(net(torch.ones(5, 2)), 0.1)
sciml_snr.exact_label_noise(net.parameters(), [term])
sciml_snr.SampledLoss()
"""
    assert "floor: label" in run(BLOCKED + trained)


def test_what_needs_more_says_so():
    code = """
import sciml_snr
try:
    sciml_snr.NoisyPointSetBC
except ImportError as error:
    print(error)
"""
    assert "deepxde" in run(BLOCKED + code)


def test_importing_imports_neither_deepxde_nor_what_is_for_figures():
    code = """
import sys
import sciml_snr
print([name for name in ("deepxde", "matplotlib", "skimage", "scipy") if name in sys.modules])
"""
    assert run(code).strip() == "[]"


def test_all_names_are_there():
    import sciml_snr

    assert set(sciml_snr.__all__) <= set(dir(sciml_snr))
    missing = [name for name in sciml_snr.__all__ if getattr(sciml_snr, name, None) is None]
    assert missing == []
