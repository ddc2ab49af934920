"""What images and shapes share beside the loop: networks by name, saved fits."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..gate import overrides
from ..runs.config import check_same
from ..runs.folder import CHECKPOINT, FORMAT, RunFolder, read_arrays, run_folder, write_arrays
from ..runs.loop import check_memory, seeded
from ..sigma import SigmaEstimate
from .networks import NETWORKS

LAYERS = 1_000
"""More hidden layers than this are refused."""


@dataclass(frozen=True)
class NetworkChoice:
    """A built-in network by name, or the user's own."""

    name: str
    options: dict[str, Any]
    own: nn.Module | None = None
    """The user's, as it was before the fit."""

    def build(self, inputs: int, outputs: int, seed: int) -> nn.Module:
        """A fresh one: the same one for the same seed.

        Raises:
            ValueError: there is no such network or option, or it does not fit the data.
        """
        if self.own is not None:
            network = copy.deepcopy(self.own)
        elif self.name in NETWORKS:
            self._check_size(inputs, outputs)
            try:
                with seeded(seed):
                    network = NETWORKS[self.name](inputs, outputs, **self.options)
            except (TypeError, ArithmeticError, RuntimeError) as error:
                raise _unusable(error) from None
        else:
            raise ValueError(
                f"There is no network {self.name!r}. Choose one of: {', '.join(NETWORKS)}, or give "
                "a torch.nn.Module."
            )
        parameter = next(network.parameters(), torch.zeros(0))
        try:
            with torch.no_grad():
                found = network(torch.zeros(2, inputs, device=parameter.device)).shape
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"The network does not take points (n, {inputs}): {error}") from None
        if found != (2, outputs):
            raise ValueError(
                f"The network makes {tuple(found)} of points (2, {inputs}); this fit needs "
                f"{(2, outputs)}."
            )
        return network

    def _check_size(self, inputs: int, outputs: int) -> None:
        """Refuse a built-in network that cannot be, or that memory cannot hold.

        Raises:
            ValueError: names the option, or the memory it would take.
        """
        build = NETWORKS[self.name]
        possible = list(inspect.signature(build).parameters)[2:]
        if unknown := [name for name in self.options if name not in possible]:
            raise ValueError(
                f"A network option is unknown: {unknown[0]!r}. {self.name} has "
                f"{', '.join(possible)}."
            )
        layers = self.options.get("hidden_layers", 1)
        if isinstance(layers, int) and layers > LAYERS:
            raise ValueError(f"hidden_layers must be at most {LAYERS:,}, got {layers}.")
        try:
            with torch.device("meta"):
                network = build(inputs, outputs, **self.options)
        except (TypeError, ArithmeticError, RuntimeError) as error:
            raise _unusable(error) from None
        size = sum(p.numel() for p in network.parameters())
        check_memory(20.0 * size, f"A network of {size:,} parameters, with its optimizer,")


def _unusable(error: Exception) -> ValueError:
    return ValueError(f"The network options cannot be used: {str(error).splitlines()[0]}.")


def open_folder(out: str | Path | None, kind: str, resume: bool) -> RunFolder | None:
    """The folder of a fit, not made yet.

    Raises:
        FileNotFoundError: there is nothing to resume.
        FileExistsError: there is a run, and it is not to be resumed.
    """
    folder = None if out is None else run_folder(out, kind, "--out-run")
    if resume:
        if folder is None or not folder.holds_run:
            raise FileNotFoundError(f"There is no run to resume in {out}: no {CHECKPOINT} there.")
    elif folder is not None:
        folder.check_free()
    return folder


def check_asked(
    where: Path,
    config: Mapping[str, Any],
    network: nn.Module | str | None,
    network_options: Mapping[str, Any] | None,
    asked: Mapping[str, Any],
) -> None:
    """:func:`sciml_snr.runs.config.check_same` for a fit with this ``config.json``.

    Of the gate's options and the network's those that are not asked for are the run's.

    Raises:
        ValueError: the run is to be resumed under other settings than its own.
    """
    named = "own" if isinstance(network, nn.Module) else network
    asked = {**asked, "network": named}
    if asked.get("gate") is not None:
        asked["gate"] = config["options"]["gate"] | (overrides(asked["gate"]) or {})
    check_same(where, asked, {**config["options"], **config})
    if network_options:
        build = NETWORKS.get(config["network"])
        default = {} if build is None else inspect.signature(build).parameters
        own = {name: p.default for name, p in default.items()} | config["network_options"]
        check_same(where, network_options, own)


def saved_choice(
    about: Mapping[str, Any], network: nn.Module | str | None, where: str | Path
) -> NetworkChoice:
    """The network of a saved fit or run.

    Args:
        about: its ``network`` and ``network_options``.
        network: the user's own, where it was that.
        where: for the message.

    Raises:
        ValueError: it was the user's own and is not given.
    """
    if not isinstance(about["network"], str) or not isinstance(about["network_options"], dict):
        raise ValueError(f"{where} is damaged: it names no network with options.")
    if about["network"] != "own":
        return NetworkChoice(about["network"], about["network_options"])
    if not isinstance(network, nn.Module):
        raise ValueError(f"The fit in {where} has a network of its user's own: give network=.")
    return NetworkChoice("own", {}, copy.deepcopy(network))


def save_fit(
    path: str | Path, about: dict[str, Any], network: nn.Module, arrays: Mapping[str, Any]
) -> None:
    """One ``.npz`` file of arrays, weights, and ``about``, anything that JSON can hold.

    Raises:
        OSError: it cannot be written; the file before is kept.
    """
    state = {f"network/{k}": v.cpu().numpy() for k, v in network.state_dict().items()}
    about = {**about, "format": FORMAT}
    write_arrays(Path(path), {"about": np.array(json.dumps(about)), **arrays, **state})


def load_fit(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """``about`` and the arrays of :func:`save_fit`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no saved fit, is damaged, or not of this ``kind`` (an entry of ``about``).
    """
    about, fields = _read_fit(Path(path))
    if about["kind"] != kind:
        raise ValueError(f"{path} is a saved fit of another kind: {about['kind']!r}.")
    return about, fields


def kind_of_fit(path: str | Path) -> str:
    """ "field", "image" or "sdf"; raises as :func:`load_fit`."""
    return str(_read_fit(Path(path))[0]["kind"])


def _read_fit(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        fields = read_arrays(path)
        about = json.loads(str(fields.pop("about")))
    except (ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is not a saved fit: {error}") from None
    if not isinstance(about, dict) or not {"format", "kind"} <= about.keys():
        raise ValueError(f"{path} is not a saved fit: it does not say what it is.")
    if about["format"] != FORMAT:
        raise ValueError(f"{path} is a saved fit of another version: {about['format']!r}.")
    return about, fields


def restore_network(network: nn.Module, fields: Mapping[str, Any]) -> None:
    """Load the saved weights.

    Raises:
        ValueError: they are another network's.
    """
    prefix = "network/"
    try:
        state = {
            k.removeprefix(prefix): torch.from_numpy(v)
            for k, v in fields.items()
            if k.startswith(prefix)
        }
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"The network is not the one of the fit: {error}") from None


def sigma_to_json(sigma: float) -> list[Any]:
    """A number, or an estimate with its error, for JSON."""
    if isinstance(sigma, SigmaEstimate):
        return [float(sigma), sigma.standard_error, sigma.n, sigma.method]
    return [float(sigma)]


def sigma_from_json(saved: Sequence[Any]) -> float:
    """The inverse of :func:`sigma_to_json`."""
    return SigmaEstimate(*saved) if len(saved) > 1 else float(saved[0])
