"""What images and shapes share beside the loop: networks by name, saved fits, run folders."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .._runs import check_resumed, defaults_of, seeded
from ..sigma import SigmaEstimate
from .fit import read_checkpoint
from .networks import NETWORKS


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
            with seeded(seed):
                try:
                    network = NETWORKS[self.name](inputs, outputs, **self.options)
                except TypeError as error:
                    raise ValueError(f"A network option is unknown: {error}.") from None
        else:
            raise ValueError(
                f"There is no network {self.name!r}. Choose one of: {', '.join(NETWORKS)}, or give "
                "a torch.nn.Module."
            )
        parameter = next(network.parameters(), torch.zeros(0))
        try:
            with torch.no_grad():
                found = network(torch.zeros(2, inputs, device=parameter.device)).shape
        except RuntimeError as error:
            raise ValueError(f"The network does not take points (n, {inputs}): {error}") from None
        if found != (2, outputs):
            raise ValueError(
                f"The network makes {tuple(found)} of points (2, {inputs}); this fit needs "
                f"{(2, outputs)}."
            )
        return network


def open_folder(out: str | Path | None, resume: bool) -> Path | None:
    """The folder of a run, not made yet.

    Raises:
        FileNotFoundError: there is nothing to resume.
        FileExistsError: there is a run, and it is not to be resumed.
    """
    folder = None if out is None else Path(out)
    if resume:
        if folder is None or not (folder / "checkpoint.pt").exists():
            raise FileNotFoundError(f"There is no run to resume in {out}: no checkpoint.pt there.")
    elif folder is not None and (folder / "config.json").exists():
        raise FileExistsError(
            f"{folder} already holds a run: resume it (--resume), or choose another folder "
            "(--out-run)."
        )
    return folder


def run_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a run that is to be resumed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    path = folder / "config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(found, dict) or "options" not in found:
            raise ValueError("it has no options")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove {folder} and begin anew.") from error
    return found


def check_asked(
    where: Path,
    config: Mapping[str, Any],
    call: Callable[..., Any],
    network: nn.Module | str | None,
    network_options: Mapping[str, Any] | None,
    asked: Mapping[str, Any],
    steps: int | None,
) -> None:
    """:func:`sciml_snr._runs.check_resumed` for a fit with this ``config.json``.

    Of the gate's options those that are not asked for are the run's; ``steps`` may be others, but
    not fewer than it has taken.

    Raises:
        ValueError: the run is to be resumed under other settings than its own.
    """
    named = "own" if isinstance(network, nn.Module) else network
    asked = {**asked, "network": named, "gate": config["options"]["gate"] | asked["gate"]}
    check_resumed(where, asked, defaults_of(call), {**config["options"], **config})
    if network_options:
        build = NETWORKS.get(config["network"])
        own = {**(defaults_of(build) if build else {}), **config["network_options"]}
        check_resumed(where, network_options, {}, own)
    if steps is not None:
        read_checkpoint(where, steps)


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
    if about["network"] != "own":
        return NetworkChoice(about["network"], about["network_options"])
    if not isinstance(network, nn.Module):
        raise ValueError(f"The fit in {where} has a network of its user's own: give network=.")
    return NetworkChoice("own", {}, copy.deepcopy(network))


def save_fit(
    path: str | Path, about: dict[str, Any], network: nn.Module, arrays: Mapping[str, Any]
) -> None:
    """One ``.npz`` file of arrays, weights, and ``about``, anything that JSON can hold."""
    state = {f"network/{k}": v.cpu().numpy() for k, v in network.state_dict().items()}
    with open(path, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays, **state)


def load_fit(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """``about`` and the arrays of :func:`save_fit`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no saved fit, or not of this ``kind`` (an entry of ``about``).
    """
    try:
        with np.load(path) as archive:
            fields = dict(archive)
        about = json.loads(str(fields.pop("about")))
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a file of another kind makes numpy say
        raise ValueError(f"{path} is not a saved fit: {error}") from None
    if about.get("kind") != kind:
        raise ValueError(f"{path} is a saved fit of another kind: {about.get('kind')!r}.")
    return about, fields


def restore_network(network: nn.Module, fields: Mapping[str, Any]) -> None:
    """Load the saved weights.

    Raises:
        ValueError: they are another network's.
    """
    prefix = "network/"
    state = {
        k.removeprefix(prefix): torch.from_numpy(v)
        for k, v in fields.items()
        if k.startswith(prefix)
    }
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"The network is not the one of the fit: {error}") from None


def sigma_to_json(sigma: float) -> list[Any]:
    """A number, or an estimate with its error, for JSON."""
    if isinstance(sigma, SigmaEstimate):
        return [float(sigma), sigma.standard_error, sigma.n, sigma.method]
    return [float(sigma)]


def sigma_from_json(saved: Sequence[Any]) -> float:
    """The inverse of :func:`sigma_to_json`."""
    return SigmaEstimate(*saved) if len(saved) > 1 else float(saved[0])
