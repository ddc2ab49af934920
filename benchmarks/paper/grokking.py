r"""Grokking: arithmetic modulo 97 from a part of its table, AdamW against SNRAdam.

    python -m benchmarks.paper.grokking [JOBS] [PLAN ...]

writes benchmarks/results/grokking.csv; :mod:`benchmarks.paper.grokking_report` makes tables and a
figure of it. Without the name of a plan (see :func:`plans`) all of them are made, in turn. Called
again, it does what is not in the file yet; a run that was stopped goes on from its last checkpoint
in runs/grokking/.

Tasks and networks are in :mod:`benchmarks.paper.arithmetic`. Batches of 512 drawn without
replacement, or the whole training set in every step; 10 steps of warm-up, betas (0.9, 0.98), as
in A. Power et al., arXiv:2201.02177 (2022).

Matrix products may round their factors to bfloat16, where the processor has instructions for
it (they then take a third of the time); everything else is in float32.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from benchmarks.harness import RESULTS, append_missing, read
from benchmarks.paper.arithmetic import TASKS
from benchmarks.paper.own_variants import EvenSteps, GatedDecay
from benchmarks.paper.rivals import casmo
from sciml_snr import SNRAdam
from sciml_snr.bench.rivals import CautiousAdamW
from sciml_snr.runs.folder import write_state

PATH = RESULTS / "grokking.csv"
CHECKPOINTS = Path(__file__).parents[2] / "runs/grokking"
KEYS = ("task", "method", "lr", "weight_decay", "fraction", "batch", "seed", "steps")

WARMUP, BETAS = 10, (0.9, 0.98)
GOAL = 0.95
EVERY, SUBSET = 50, 2000
"""Steps between looks at so many held-out pairs, the same in every look."""
MARGIN = 100
"""Steps a run goes on after it has reached the goal."""
SAVE_EVERY = 1000
DIVISION, ADDITION = TASKS


@dataclass(frozen=True)
class Run:
    """One training run; the seed draws the split, the initial weights and the batches."""

    task: str
    method: str
    lr: float
    weight_decay: float
    fraction: float
    """Part of all pairs that is trained on."""
    batch: int | str
    """Pairs in a step, or "full"."""
    seed: int
    steps: int


def _snr(kind: type[SNRAdam] = SNRAdam, **fixed: Any) -> Callable[..., Optimizer]:
    def build(params: Any, batch: int, n: int, **options: Any) -> Optimizer:
        if fixed.get("alpha") == "finite":
            options |= {"batch_size": batch, "data_size": n}
        return kind(params, **fixed, **options)

    return build


def _plain(kind: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    return lambda params, batch, n, **options: kind(params, **options)


def _grokfast(params: Any, batch: int, n: int, **options: Any) -> Optimizer:
    from pytorch_optimizer import GrokFastAdamW

    return GrokFastAdamW(params, **options)


METHODS: dict[str, Callable[..., Optimizer]] = {
    "AdamW": _plain(AdamW),
    "snr": _snr(gate="snr"),
    "snr, softness 0.1": _snr(gate="snr", softness=0.1),
    "snr, softness 0.01": _snr(gate="snr", softness=0.01),
    "snr, softness 10": _snr(gate="snr", softness=10.0),
    "soft": _snr(gate="soft"),
    "soft, finite alpha": _snr(gate="soft", alpha="finite"),
    "soft, lambda 0": _snr(gate="soft", lambd=0.0),
    "soft, lambda 0, finite alpha": _snr(gate="soft", lambd=0.0, alpha="finite"),
    "snr, per tensor": _snr(gate="snr", reduction="per_tensor"),
    "soft, finite alpha, per tensor": _snr(gate="soft", alpha="finite", reduction="per_tensor"),
    "snr, gate from step 500": _snr(gate={"form": "snr", "warmup_steps": 500}),
    "soft, gate from step 500": _snr(gate={"form": "soft", "warmup_steps": 500}),
    "snr, gated decay": _snr(GatedDecay, gate="snr"),
    "snr, decay by the mean gate": _snr(GatedDecay, gate="snr", mean=True),
    "soft, finite alpha, gated decay": _snr(GatedDecay, gate="soft", alpha="finite"),
    "snr, even steps": _snr(EvenSteps, gate="snr"),
    "snr, softness 0.1, even steps": _snr(EvenSteps, gate="snr", softness=0.1),
    "soft, lambda 0, finite alpha, even steps": _snr(
        EvenSteps, gate="soft", lambd=0.0, alpha="finite"
    ),
    "Grokfast AdamW": _grokfast,
    "Cautious AdamW": _plain(CautiousAdamW),
    "CASMO": _plain(casmo),
}
"""With ``lambda 0`` the soft gate is the hard one. Decays are AdamW's, not gated, but where the
name says so; gated decay and even steps are ours. CASMO and Grokfast need the extra "bench"."""


class Training:
    """One run under way."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.rng = torch.Generator().manual_seed(run.seed)
        torch.manual_seed(run.seed)
        task = TASKS[run.task]
        self.net = task.network()
        table = task.table()
        table = table[:, torch.randperm(table.shape[1], generator=self.rng)]
        self.n = int(run.fraction * table.shape[1])
        self.training, self.held_out = table[:, : self.n], table[:, self.n :]
        self.batch = self.n if run.batch == "full" else int(run.batch)
        self.optimizer = METHODS[run.method](
            self.net.parameters(),
            batch=self.batch,
            n=self.n,
            lr=run.lr,
            weight_decay=run.weight_decay,
            betas=BETAS,
        )
        self.curve: list[tuple[float, ...]] = []
        """(step, accuracy on the batch, on the held-out subset, norm of the weights, mean gate)."""
        self.step, self.seconds = 0, 0.0

    def advance(self) -> None:
        """One step; every 50th is looked at."""
        started = time.process_time()
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.lr * min(1, self.step / WARMUP)
        rows = self.training
        if self.batch < self.n:
            # A batch without replacement, as the finite-data threshold supposes.
            rows = rows[:, torch.randperm(self.n, generator=self.rng)[: self.batch]]
        a, b, result = rows
        self.optimizer.zero_grad()
        logits = self.net(a, b)
        F.cross_entropy(logits, result).backward()
        self.optimizer.step()
        if self.step % EVERY == 0:
            fitted = float((logits.argmax(1) == result).float().mean())
            held_out = self.accuracy(self.held_out[:, :SUBSET])
            self.curve.append((self.step, fitted, held_out, self.norm(), self.mean_gate()))
        self.seconds += time.process_time() - started

    @torch.no_grad()
    def accuracy(self, data: Tensor) -> float:
        """Part of the (3, n) pairs and results that is predicted right."""
        a, b, result = data
        return float((self.net(a, b).argmax(1) == result).float().mean())

    @torch.no_grad()
    def norm(self) -> float:
        """Euclidean norm of all weights."""
        return math.sqrt(sum(float(p.square().sum()) for p in self.net.parameters()))

    def mean_gate(self) -> float:
        """Mean of q over all weights; 1 without a gate."""
        if isinstance(self.optimizer, SNRAdam):
            return self.optimizer.gate_stats().mean_q
        return 1.0

    def reached(self, column: int) -> int | None:
        """The first step looked at with the goal reached, or None."""
        return next((int(row[0]) for row in self.curve if row[column] >= GOAL), None)

    def is_over(self) -> bool:
        """The budget is spent, or the goal was reached a while ago."""
        goal = self.reached(2)
        return self.step >= self.run.steps or (goal is not None and self.step >= goal + MARGIN)

    def row(self) -> dict[str, Any]:
        """What goes into the results file."""
        fitted, generalized = self.reached(1), self.reached(2)
        thinned = self.curve[:: math.ceil(len(self.curve) / 200)]
        digits = (0, 3, 3, 1, 4)
        return {key: str(value) for key, value in asdict(self.run).items()} | {
            "steps_to_fit": "" if fitted is None else fitted,
            "steps_to_goal": "" if generalized is None else generalized,
            "steps_taken": self.step,
            "held_out_accuracy": self.accuracy(self.held_out),
            "cpu_milliseconds": 1000 * self.seconds / self.step,
            "curve": json.dumps(
                [[round(x, d) for x, d in zip(row, digits, strict=True)] for row in thinned]
            ),
        }

    def state(self) -> dict[str, Any]:
        """All that going on needs."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "curve": self.curve,
            "step": self.step,
            "seconds": self.seconds,
        }

    def go_on_from(self, state: dict[str, Any]) -> None:
        """From where :meth:`state` was taken."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self.curve = [tuple(row) for row in state["curve"]]
        self.step, self.seconds = state["step"], state["seconds"]


def train(run: Run, folder: Path | None = None) -> dict[str, Any]:
    """One run on one thread, from its checkpoint where there is one.

    A run with a larger budget goes on from the checkpoint of a shorter one.
    """
    torch.set_num_threads(1)
    folder = folder or CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join(str(value) for key, value in asdict(run).items() if key != "steps")
    checkpoint = folder / (name.replace("/", "over").replace(" ", "_") + ".pt")
    training = Training(run)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)  # CASMO's has a deque
        if state["step"] <= run.steps:
            training.go_on_from(state)
    with rounded_products():
        while not training.is_over():
            training.advance()
            if training.step % SAVE_EVERY == 0 or training.is_over():
                write_state(checkpoint, training.state())
                _, fitted, held_out, *_ = training.curve[-1]
                print(f"{name}: step {training.step}, batch {fitted:.1%}, held out {held_out:.1%}")
        return training.row()


@contextlib.contextmanager
def rounded_products() -> Iterator[None]:
    """Matrix products inside may be made in bfloat16; the setting is the process's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# What is measured --------------------------------------------------------------------------------

SEEDS = range(3)
LONG, SHORT, EVEN, LARGE_DECAY = 40_000, 10_000, 20_000, 12_000
"""Steps of the paper's task: AdamW's and the best gates', other gates', those of even steps, and
these at a decay of 3. AdamW gets there in 17,200 to 25,500 (lr 1e-3, decay 1)."""
QUICK = 12_000
"""Steps of the perceptron, twice what AdamW needs at lr 1e-3, decay 1."""
CELLS = ((1e-3, 1.0), (1e-2, 0.1), (3e-3, 0.3), (1e-3, 0.3))
"""Learning rates and decays of the perceptron. A gate shrinks the steps and not the decay, so that
it may want a larger rate at the same product of both: the first three."""


def division(
    method: str, weight_decay: float, seed: int = 0, steps: int = SHORT, **changes: Any
) -> Run:
    """A run of the paper's task."""
    options = {"lr": 1e-3, "fraction": 0.25, "batch": 512, **changes}
    return Run(DIVISION, method, weight_decay=weight_decay, seed=seed, steps=steps, **options)


def addition(method: str, lr: float, weight_decay: float, seed: int = 0, **changes: Any) -> Run:
    """A run of the perceptron."""
    options = {"fraction": 0.4, "batch": 512, "steps": QUICK, **changes}
    return Run(ADDITION, method, lr, weight_decay, seed=seed, **options)


RULES = [name for name in METHODS if name.startswith(("snr", "soft"))]
RIVALS = ("Grokfast AdamW", "Cautious AdamW", "CASMO")
MAIN = ("snr", "soft", "soft, finite alpha", "soft, lambda 0", "soft, lambda 0, finite alpha")
GRID = [(lr, decay) for lr in (1e-3, 3e-3, 1e-2, 3e-2) for decay in (0.1, 0.3, 1.0, 3.0)]
"""The perceptron's phase diagram: all rates with all decays."""
NEARLY_OPEN = ("snr, softness 0.01", "snr, softness 0.1", "soft, lambda 0, finite alpha")
"""Gates that leave the table learned on the smaller task."""


def fastest(methods: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Learning rate and decay of each method's fastest run of the phase diagram, seed 0."""
    found: dict[str, tuple[float, tuple[float, float]]] = {}
    for row in read(PATH):
        run = (row["task"], row["fraction"], row["batch"], row["seed"])
        cell = (float(row["lr"]), float(row["weight_decay"]))
        if run == (ADDITION, "0.4", "512", "0") and cell in GRID:
            steps = (float(row["steps_to_goal"] or "inf"), cell)
            found[row["method"]] = min(found.get(row["method"], steps), steps)
    return {method: found[method][1] for method in methods if method in found}


def plans() -> dict[str, list[Run]]:
    """Lists of runs by name, the most telling first."""
    every = ["AdamW", *RULES, *RIVALS]
    even = [name for name in reversed(RULES) if name.endswith("even steps")]
    grid = ["AdamW", "snr", *NEARLY_OPEN[1:], *even, *RIVALS]
    few = ["AdamW", *MAIN]
    return {
        "addition": [addition(m, *cell) for cell in CELLS for m in every],
        "addition grid": [addition(m, *cell) for m in grid for cell in GRID],
        "addition best": [
            addition(m, *cell, seed) for seed in SEEDS[1:] for m, cell in fastest(grid).items()
        ],
        "adamw": [division("AdamW", d, s, LONG) for s in SEEDS for d in (1.0, 0.3, 3.0, 0.1)],
        "division open": [division(m, 1.0, steps=LONG) for m in NEARLY_OPEN],
        "division seeds": [
            division(m, 1.0, s, LONG) for s in SEEDS[1:] for m in ("AdamW", NEARLY_OPEN[0])
        ],
        "division even": [
            *(division(even[0], 1.0, seed, EVEN) for seed in SEEDS),
            division(even[0], 3.0, steps=LARGE_DECAY),
            *(division(m, 1.0, steps=EVEN) for m in even[1:]),
        ],
        "division": [division(m, decay) for decay in (1.0, 0.3, 0.1) for m in MAIN],
        "addition seeds": [
            addition(m, *cell, seed) for cell in CELLS for seed in SEEDS[1:] for m in every
        ],
        "division full": [
            division(m, decay, batch="full", steps=5000)
            for decay in (1.0, 0.3)
            for m in ("AdamW", "snr", "soft, lambda 0")
        ],
        "addition fractions": [
            addition(m, *cell, fraction=fraction)
            for fraction in (0.3, 0.5)
            for cell in CELLS[:2]
            for m in few
        ],
        "addition full": [
            addition(m, *CELLS[0], batch="full")
            for m in ("AdamW", "snr", "soft", "soft, lambda 0", "snr, per tensor")
        ],
        "division rest": [
            division(m, decay) for decay in (1.0, 0.3) for m in RULES if m not in MAIN
        ],
    }


def main(jobs: int | None = None, names: Sequence[str] = ()) -> None:
    """Measure what is missing of the plans named, or of all.

    Raises:
        ValueError: there is no plan of that name.
    """
    known = list(plans())
    if unknown := set(names) - set(known):
        raise ValueError(f"no plan named {', '.join(sorted(unknown))}: take of {', '.join(known)}")
    for name in names or known:
        # Made anew each time: one plan follows from the rows of another.
        append_missing(PATH, plans()[name], KEYS, train, jobs)


if __name__ == "__main__":
    numbers = [int(x) for x in sys.argv[1:] if x.isdigit()]
    main(*numbers, names=[x for x in sys.argv[1:] if not x.isdigit()])
