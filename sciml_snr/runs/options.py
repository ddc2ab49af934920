"""Every option of every kind of run: of problems, and of fits to images and points."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..gate import overrides
from .config import Config, as_json, option
from .loop import check_device, check_memory

if TYPE_CHECKING:
    from sciml_snr.problems import Observations, Problem

GAUSS_NEWTON = "snr_gn"
"""Has two stages, see :data:`STAGES`, and no learning rate."""

PROBLEM_OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd", "snr_adam", "snr_soap", GAUSS_NEWTON)
"""Optimizers by DeepXDE's names. L-BFGS is not among them: it counts iterations differently."""

DEFAULT_OPTIMIZER = "snr_adam"
"""Of problems."""

FIT_OPTIMIZERS = ("snr_soap", "snr_adam", "adam")

POINT_BYTES = 10_000
"""Memory that training takes per measured point, in a network of a usual size."""

MAX_SEED = 2**32 - 1
_DEVICE = "cpu, cuda, ... [default: a GPU where there is one]."
_BUDGET = 10**9


STAGES = (400, 200)
"""Of ``snr_gn``: iterations of ``snr_adam`` from the random network, at :data:`FIRST_LR`, and
Gauss-Newton steps at most: they end by themselves, most of them after 30 to 150."""

FIRST_LR = 3e-3


def first_stage(iterations: int) -> int:
    """Of so many iterations of ``snr_gn``, those of ``snr_adam``: a small budget has fewer."""
    return min(STAGES[0], max(0, iterations - STAGES[1]))


@dataclass(frozen=True)
class ProblemConfig(Config):
    """What defines a run of a problem; two runs with the same one on one machine end with the same
    bits. What is None is as by default: the problem's own, of own data what the file says."""

    problem: str = option(
        "", "A problem's name (see `sciml-snr problems`), or your own file.", command="none"
    )
    optimizer: str | None = option(
        None,
        f"{', '.join(PROBLEM_OPTIMIZERS)} [default: snr_adam].",
    )
    lr: float | None = option(
        None,
        "Learning rate [default: the problem's]. Of snr_gn, which has none, the longest step "
        "[default: any].",
        above=0,
    )
    iterations: int | None = option(
        None, "Budget [default: the problem's; of snr_gn its own].", least=1, most=_BUDGET
    )
    noise: float | None = option(
        None,
        "Standard deviation of the measurements' error, in logs for lynx_hare [default: the "
        "problem's; of own data the sigma column, else estimated].",
    )
    points: int | None = option(None, "Number of synthetic measurements [default: the problem's].")
    seed: int | None = option(
        None, "Seed of data, network and training [default: 0].", least=0, most=MAX_SEED
    )
    data: str | None = option(
        None,
        "CSV of your own measurements: coordinates, outputs, optionally sigma (or sigma_NAME of "
        "each output) [default: synthetic measurements].",
        command="path",
    )
    settings: dict[str, Any] | None = option(
        None,
        "Set the domain, a constant, a guess or the number of the equation's points: "
        "domain.x=0,120, beta=3, guess.diffusivity=2, num_domain=2000; repeatable. `sciml-snr "
        "problems NAME` says what there is.",
        flag="set",
        command="pairs",
    )
    held_out: float | None = option(
        None,
        "Share of own measurements that a second training does not see, which measures how well "
        "the fit predicts; it takes as long again; 0: none [default: 0.1].",
        least=0,
        most=0.5,
    )
    device: str | None = option(None, "cpu, cuda, ... [default: DeepXDE's choice].")
    snr_options: dict[str, Any] | None = option(
        None,
        "Option of set_SNR_options, e.g. gate=hard or lambd=4; repeatable.",
        flag="snr-option",
        command="pairs",
    )

    def resolved(self) -> ProblemConfig:
        """The same with the problem's defaults filled in and everything checked.

        Raises:
            ValueError: a value is out of range; the message says which and what is possible.
        """
        from sciml_snr import problems
        from sciml_snr.problems.files import is_file
        from sciml_snr.problems.settings import arguments, constants

        from .run import check_snr_options

        cls = problems.get(self.problem)
        optimizer = self.optimizer or DEFAULT_OPTIMIZER
        if optimizer not in PROBLEM_OPTIMIZERS:  # benchmarks know others
            raise ValueError(
                f"There is no optimizer {optimizer!r}. Choose one of: "
                f"{', '.join(PROBLEM_OPTIMIZERS)}."
            )
        options = self.snr_options or {}
        if options and not optimizer.startswith("snr_"):
            raise ValueError(
                f"snr_options are for snr_adam, snr_soap and snr_gn: {optimizer} has no "
                f"{', '.join(map(str, options))}."
            )
        check_snr_options(options)
        is_second_order = optimizer == GAUSS_NEWTON
        if self.device is not None:
            check_device(self.device)
        settings = as_json(self.settings or {})
        arguments(cls, settings, own_data=self.data is not None)
        if "source" in constants(cls):  # its file is read in another folder, perhaps
            if "source" in settings:
                settings["source"] = os.path.realpath(str(settings["source"]))
            elif self.data is not None:
                raise ValueError(
                    f"{self.problem} is of two measured fields, and those of f would still be "
                    "synthetic: give yours, too, by --set source=FILE.csv (columns: "
                    f"{', '.join(cls.coordinates)}, f, optionally sigma)."
                )
        if self.held_out and self.data is None:
            raise ValueError("held_out is a share of own measurements: give --data, or leave it.")
        return dataclasses.replace(
            self,
            problem=os.path.realpath(self.problem) if is_file(self.problem) else self.problem,
            settings=settings,
            held_out=0.1 if self.data is not None and self.held_out is None else self.held_out,
            optimizer=optimizer,
            lr=cls.lr if self.lr is None and not is_second_order else self.lr,
            iterations=self.iterations or (sum(STAGES) if is_second_order else cls.iterations),
            seed=self.seed or 0,
            data=None if self.data is None else os.path.realpath(self.data),
            snr_options=options,
        )

    @property
    def name(self) -> str:
        """The problem's name; of a file its own."""
        return Path(self.problem).stem if self.problem.endswith(".py") else self.problem

    def build(self, observations: Observations | None = None) -> Problem:
        """The problem with its measurements.

        Args:
            observations: others than those of ``data``, with their sigma.

        Raises:
            ValueError, FileNotFoundError: the measurements, the settings or the problem's file
                cannot be used; the message says why.
        """
        from sciml_snr import problems
        from sciml_snr.problems.files import blamed, check_runs, is_file
        from sciml_snr.problems.settings import arguments

        cls = problems.get(self.problem)
        if self.points is not None:
            check_memory(POINT_BYTES * float(self.points), f"points = {self.points}")
        found = arguments(cls, self.settings or {}, own_data=self.data is not None)
        known = observations is not None and observations.sigma is not None
        found |= dict(
            points=self.points,
            noise=None if known else self.noise,
            seed=self.seed or 0,
            observations=self.data if observations is None else observations,
        )
        if not is_file(self.problem):
            problem = cls(**found)
            source = getattr(problem, "source_observations", None)
            if source is not None and source.sigma is None:
                raise ValueError(
                    f"{found['source']}: the error of f is unknown: add a column sigma, or give "
                    "--noise for both fields."
                )
            return problem
        with blamed(self.problem):
            problem = cls(**found)
        check_runs(problem, self.problem)
        return problem


@dataclass(frozen=True)
class FitOptions(Config):
    """How a network is fitted to data that carry an error."""

    optimizer: str = option(
        "snr_soap",
        "snr_soap, snr_adam, or adam (for comparison: it memorizes) [default: snr_soap].",
        among=FIT_OPTIMIZERS,
    )
    lr: float = option(1e-4, "Learning rate [default: by network and data].", above=0)
    steps: int = option(2000, "Budget [default: by the data].", least=1, most=_BUDGET)
    cooldown: float = option(
        0.0,
        "Share of the steps, the last, in which the learning rate falls to 0 along a straight "
        "line (A. Haegele et al., arXiv:2405.18392) [default: 0; of shapes 0.3].",
        least=0,
        most=1,
    )
    batch_size: int | None = option(
        None, "Data in a step [default: all, of many a part].", least=1, most=_BUDGET
    )
    floor_every: int = option(
        10, "Renew the label floor every so many steps [default: 10].", least=1, most=_BUDGET
    )
    gate: Any = option(
        None,
        "Field of sciml_snr.Gate, e.g. form=hard or z=2.5; repeatable.",
        flag="gate-option",
        command="pairs",
    )
    seed: int = option(
        0, "Seed of network, batches and floor [default: 0].", least=0, most=MAX_SEED
    )
    device: str | None = option(None, _DEVICE)
    patience: int | None = option(
        None,
        "Stop when the estimated risk has not fallen for so many steps, and go back to its "
        "lowest; for snr_adam and adam, and images.",
        least=1,
        most=_BUDGET,
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: names the option and what is possible.
        """
        super().__post_init__()
        if self.gate and self.optimizer == "adam":
            raise ValueError("gate options are for snr_soap and snr_adam: adam has no gate.")
        if self.patience is not None and self.optimizer == "snr_soap":
            raise ValueError(
                "patience needs an estimate of the risk, which there is not for snr_soap: choose "
                "snr_adam or adam."
            )
        object.__setattr__(self, "gate", overrides(self.gate) or {})  # refuses what is wrong
        if self.device is not None:
            check_device(self.device)

    @property
    def torch_device(self) -> torch.device:
        """The device of the fit."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def lr_at(self, step: int, steps: int | None = None) -> float:
        """Learning rate of a step, counted from 0, of ``steps`` (by default the options' own). A
        fit that is resumed with more steps takes the full rate up again."""
        steps = self.steps if steps is None else steps
        left = max(0, steps - step) / steps
        return self.lr if left >= self.cooldown else self.lr * left / self.cooldown


@dataclass(frozen=True)
class ImageOptions(FitOptions):
    """What can be asked of :func:`sciml_snr.fields.fit_image`."""

    HELP: ClassVar[dict[str, str]] = {
        "lr": "Learning rate [default: 1e-3 for fourier and wire, 3e-4 for others; snr_soap on "
        "more than 8192 pixels: twice that; adam: a third].",
        "steps": "Budget [default: 3 times the root of the pixels, 300 at least; of more than "
        "40,000 pixels 6 times].",
        "batch_size": "Pixels in a step [default: all, of larger images 4096].",
        "cooldown": "Share of the steps, the last, in which the learning rate falls to 0 "
        "[default: 0].",
    }

    sigma: Any = option(
        None,
        "Standard deviation of the noise in units of the image (8 bit: of 255): one, one per "
        "channel, or one per pixel in an array or a file (.tif, .npy); an estimate counts texture "
        "as noise [default: estimated].",
        command="numbers or path",
    )
    noise: str | None = option(
        None,
        "What kind it is. auto: looked at before the fit, which then allows for correlated noise, "
        "stripes and outliers. white: errors are independent, and of one size. poisson: counted "
        "photons; errors are independent, their variance grows with the brightness [default: "
        "auto].",
        among=("auto", "white", "poisson"),
    )
    gain: Any = option(
        None,
        "Of noise=poisson: variance = gain * brightness + offset, in units of the image; one, or "
        "one per channel [default: estimated from the image].",
        command="numbers",
    )
    offset: Any = option(
        None,
        "Of noise=poisson: the variance where there is no light; below 0 where black is not at "
        "the number 0 [default: estimated from the image].",
        command="numbers",
    )
    mask: Any = option(
        None, "An image (or array) that is not black where pixels are missing.", command="path"
    )
    channel_axis: Any = option(
        "auto",
        "Which axis counts channels, e.g. -1 or 0; in Python None where none does [default: as the "
        "file says; of an array the last one, if it is of four at most].",
        command="whole",
    )
    spacing: Any = option(
        None,
        "Lengths of a pixel or voxel along the axes, or one for all: repeatable; the field and "
        "slopes are in their unit [default: 1].",
        command="numbers",
    )
    network: Any = option(
        None,
        "siren (the default), fourier, wire or softplus; in Python also a torch.nn.Module, which "
        "is copied.",
    )
    network_options: dict[str, Any] | None = option(
        None,
        "E.g. hidden_features=256 or first_omega_0=40; repeatable.",
        flag="network-option",
        command="pairs",
    )


@dataclass(frozen=True)
class FieldOptions(FitOptions):
    """What can be asked of :func:`sciml_snr.fields.fit_field`."""

    HELP: ClassVar[dict[str, str]] = {
        "optimizer": "snr_soap, snr_adam, or adam (for comparison: it memorizes) [default: "
        "snr_soap; in Python, with an operator, snr_adam].",
        "lr": "Learning rate [default: 3e-3 for siren, 1e-3 for others; adam: a third].",
        "steps": "Budget [default: 1000].",
        "batch_size": "Samples in a step [default: all of up to 8192, 4096 of more; of an "
        "operator's measurements all].",
        "cooldown": "Share of the steps, the last, in which the learning rate falls to 0 "
        "[default: 0.3].",
        "patience": "Stop when the estimated risk has not fallen for so many steps, and go back "
        "to its lowest; for snr_adam and adam, and samples of the field itself.",
    }

    sigma: Any = option(
        None,
        "Standard deviation of the values' errors, in their units: a number, or one per output; "
        "in Python also one per sample (n,), or (n, m). In a file: columns sigma, or sigma_NAME "
        "[default: estimated from neighbouring samples].",
        command="numbers",
    )
    scale: Any = option(
        None,
        "Lengths, one per coordinate, over which the function changes about as much: they make "
        "up for anisotropy; only their ratios count [default: the samples' extent].",
        command="numbers",
    )
    network: Any = option(
        None,
        "siren (the default), fourier, wire or softplus; in Python also a torch.nn.Module, which "
        "is copied.",
    )
    network_options: dict[str, Any] | None = option(
        None,
        "E.g. hidden_features=256 or first_omega_0=8; repeatable.",
        flag="network-option",
        command="pairs",
    )


@dataclass(frozen=True)
class PointsOptions(FitOptions):
    """What can be asked of :func:`sciml_snr.fields.fit_sdf`."""

    HELP: ClassVar[dict[str, str]] = {
        "lr": "Learning rate [default: the network's].",
        "steps": "Budget [default: 2000].",
        "batch_size": "Points in a step [default: all of up to 2048, 512 of more].",
        "cooldown": "Share of the steps, the last, in which the learning rate falls to 0 "
        "[default: 0.3].",
        "floor_every": "Renew the label floor every so many steps [default: 5].",
    }

    sigma: float | None = option(
        None,
        "Standard deviation of the points' error along the normal, in their units [default: "
        "estimated].",
        least=0,
    )
    sample: int | None = option(
        None, "Points to take from the faces of a mesh, instead of its vertices."
    )
    orient: Any = option(
        None,
        "Which side is outside: up (along the last axis); normals (those given tell the side, and "
        "are estimated anew); in Python also where the points were seen from, (d,) or one for each "
        "(n, d) [default: the given normals', or else estimated].",
    )
    drop_bad: bool | None = option(
        None, "Leave out points that are NaN or infinite, and those whose normal is, or is 0."
    )
    network: Any = option(
        None,
        "softplus (the default), siren, fourier or wire; in Python also a torch.nn.Module, which "
        "is copied.",
    )
    network_options: dict[str, Any] | None = option(
        None, "E.g. hidden_features=128; repeatable.", flag="network-option", command="pairs"
    )
