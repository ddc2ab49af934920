r"""Grokking: division modulo 97 from a quarter of its table, AdamW against SNRAdam.

    python -m benchmarks.paper.grokking [JOBS]

writes benchmarks/results/grokking.csv and docs/figures/grokking.png. Called again, it does what is
not in the file yet; a run that was stopped goes on from its last checkpoint in runs/grokking/.

The task and the network are those of A. Power, Y. Burda, H. Edwards, I. Babuschkin and V. Misra,
*Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets*, arXiv:2201.02177
(2022): a / b = a b^-1 mod 97 as four tokens ``a / b =``, a decoder of 2 layers, width 128, 4 heads
and no dropout, batches of 512, 10 steps of warm-up, betas (0.9, 0.98).

Matrix products may round their factors to bfloat16, where the processor has instructions for
it (they then take a third of the time); everything else is in float32.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr import SNRAdam
from sciml_snr.figures import COLORS
from sciml_snr.runs.folder import write_state

PATH = RESULTS / "grokking.csv"
FIGURE = Path(__file__).parents[2] / "docs/figures/grokking.png"
CHECKPOINTS = Path(__file__).parents[2] / "runs/grokking"
KEYS = ("method", "lr", "weight_decay", "seed", "steps")

MODULUS, WIDTH, HEADS = 97, 128, 4
TRAINING = 0.25
"""Part of all pairs that is trained on."""
BATCH, WARMUP, BETAS = 512, 10, (0.9, 0.98)
GOAL = 0.95
EVERY, SUBSET = 50, 2000
"""Steps between looks at so many held-out pairs, the same in every look."""
MARGIN = 100
"""Steps a run goes on after it has reached the goal."""
SAVE_EVERY = 1000

N_TRAINING = int(TRAINING * MODULUS * (MODULUS - 1))
METHODS: dict[str, Callable[..., Optimizer]] = {
    "AdamW": AdamW,
    "SNRAdam, published rule (default)": SNRAdam,
    "SNRAdam, alpha = b / (n - b)": lambda params, **options: SNRAdam(
        params, alpha="finite", batch_size=BATCH, data_size=N_TRAINING, **options
    ),
}
CELLS: dict[str, tuple[tuple[float, float], ...]] = {
    "AdamW": (
        *((1e-3, 0.3), (1e-3, 1.0), (1e-3, 3.0), (3e-3, 0.3), (3e-3, 1.0), (3e-3, 3.0)),
        *((3e-4, 3.0), (1e-2, 0.3)),
    ),
    "SNRAdam, published rule (default)": (
        *((1e-3, 0.03), (1e-3, 0.1), (1e-3, 0.3), (3e-3, 0.03), (3e-3, 0.1), (3e-3, 0.3)),
        *((1e-2, 0.1), (1e-2, 0.3)),
    ),
    "SNRAdam, alpha = b / (n - b)": (
        *((1e-3, 0.1), (1e-3, 0.3), (1e-3, 1.0), (3e-3, 0.1), (3e-3, 0.3), (3e-3, 1.0)),
        *((1e-2, 0.1), (1e-2, 0.3)),
    ),
}
"""Learning rates and weight decays that are tried, as many for every method. The gate shrinks the
steps and not the decay, so that SNRAdam wants smaller decays."""
SCAN, FULL = 5000, 20_000
"""Steps of a run of the scan over the cells, and of one at the best of them."""
SEEDS = range(3)


@dataclass(frozen=True)
class Run:
    """One training run; the seed draws the split, the initial weights and the batches."""

    method: str
    lr: float
    weight_decay: float
    seed: int
    steps: int


class Block(nn.Module):
    """Causal attention and a two-layer perceptron, each followed by layer normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.widen = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.norm_attention, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(
        self,
        x: Tensor,
        past: Tensor | None = None,
        index: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """(n, t, WIDTH) outputs at the tokens x, or (n, 1, WIDTH) at the last of them.

        Args:
            x: (n, t, WIDTH) inputs.
            past: (k, s, WIDTH) inputs at the tokens before, of k different beginnings.
            index: (n,) which beginning each row has.
            last: see above.
        """
        keys_values = self.key_value(x)
        if past is not None:
            keys_values = torch.cat([self.key_value(past)[index], keys_values], 1)
        keys, values = keys_values.chunk(2, -1)
        t, total = x.shape[1], keys.shape[1]
        seen = None if last else torch.ones(t, total, dtype=torch.bool).tril(total - t)
        x = x[:, -1:] if last else x
        q, k, v = (
            z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in (self.query(x), keys, values)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = self.norm_attention(x + self.out(mixed.transpose(1, 2).flatten(-2)))
        out: Tensor = self.norm(x + self.narrow(F.relu(self.widen(x))))
        return out


class Transformer(nn.Module):
    """Reads ``a / b =`` and predicts the quotient.

    What causal attention makes of the tokens ``a /`` depends on a alone, and is computed once for
    each of the 97 values, not for every pair.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(MODULUS + 2, WIDTH)
        self.first, self.second = Block(), Block()
        self.head = nn.Linear(WIDTH, MODULUS + 2, bias=False)
        angles = torch.arange(4)[:, None] * 1e4 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
        self.register_buffer("position", torch.stack([angles.sin(), angles.cos()], -1).flatten(1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, 99) logits of the quotients of (n,) dividends and divisors."""
        every = torch.arange(MODULUS)
        start = self._embedded(every, MODULUS, self.position[:2])
        end = self._embedded(b, MODULUS + 1, self.position[2:])
        end = self.first(end, start, a)
        logits: Tensor = self.head(self.second(end, self.first(start), a, last=True)[:, 0])
        return logits

    def _embedded(self, number: Tensor, sign: int, position: Tensor) -> Tensor:
        """(n, 2, WIDTH) of a number and the sign behind it."""
        embedded: Tensor = self.embed(torch.stack([number, torch.full_like(number, sign)], 1))
        return embedded + position


def table() -> tuple[Tensor, Tensor, Tensor]:
    """All dividends a, divisors b and quotients a / b mod 97: (97 * 96,) each."""
    a, b = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(1, MODULUS)).T
    inverse = torch.tensor([pow(int(x), -1, MODULUS) for x in range(1, MODULUS)])
    return a, b, a * inverse[b - 1] % MODULUS


class Training:
    """One run under way."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.rng = torch.Generator().manual_seed(run.seed)
        torch.manual_seed(run.seed)
        self.net = Transformer()
        self.optimizer = METHODS[run.method](
            self.net.parameters(), lr=run.lr, weight_decay=run.weight_decay, betas=BETAS
        )
        data = torch.stack(table())[:, torch.randperm(MODULUS * (MODULUS - 1), generator=self.rng)]
        self.training, self.held_out = data[:, :N_TRAINING], data[:, N_TRAINING:]
        self.curve: list[tuple[int, float, float]] = []
        """(step, accuracy on the batch, accuracy on the held-out subset)."""
        self.step, self.seconds = 0, 0.0

    def advance(self) -> None:
        """One step; every 50th is looked at."""
        started = time.process_time()
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.lr * min(1, self.step / WARMUP)
        # A batch without replacement, as the finite-data threshold supposes.
        rows = torch.randperm(N_TRAINING, generator=self.rng)[:BATCH]
        a, b, quotient = self.training[:, rows]
        self.optimizer.zero_grad()
        logits = self.net(a, b)
        F.cross_entropy(logits, quotient).backward()
        self.optimizer.step()
        if self.step % EVERY == 0:
            fitted = float((logits.argmax(1) == quotient).float().mean())
            self.curve.append((self.step, fitted, self.accuracy(self.held_out[:, :SUBSET])))
        self.seconds += time.process_time() - started

    @torch.no_grad()
    def accuracy(self, data: Tensor) -> float:
        """Part of the (3, n) dividends, divisors and quotients that is predicted right."""
        a, b, quotient = data
        return float((self.net(a, b).argmax(1) == quotient).float().mean())

    def reached(self, column: int) -> int | None:
        """The first step looked at with the goal reached, or None."""
        return next((row[0] for row in self.curve if row[column] >= GOAL), None)

    def is_over(self) -> bool:
        """The budget is spent, or the goal was reached a while ago."""
        goal = self.reached(2)
        return self.step >= self.run.steps or (goal is not None and self.step >= goal + MARGIN)

    def row(self) -> dict[str, Any]:
        """What goes into the results file."""
        fitted, generalized = self.reached(1), self.reached(2)
        thinned = self.curve[:: math.ceil(len(self.curve) / 200)]
        return {key: str(value) for key, value in asdict(self.run).items()} | {
            "steps_to_fit": "" if fitted is None else fitted,
            "steps_to_goal": "" if generalized is None else generalized,
            "steps_taken": self.step,
            "held_out_accuracy": self.accuracy(self.held_out),
            "cpu_milliseconds": 1000 * self.seconds / self.step,
            "curve": json.dumps([[s, round(f, 3), round(h, 3)] for s, f, h in thinned]),
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
    name = f"{run.method}-{run.lr:g}-{run.weight_decay:g}-{run.seed}"
    checkpoint = folder / (name.replace("/", "over").replace(" ", "_") + ".pt")
    training = Training(run)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["step"] <= run.steps:
            training.go_on_from(state)
    with rounded_products():
        while not training.is_over():
            training.advance()
            if training.step % SAVE_EVERY == 0 or training.is_over():
                write_state(checkpoint, training.state())
                _, fitted, held_out = training.curve[-1]
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


def figure(path: Path = FIGURE) -> None:
    """Accuracies over steps, every method at the best of its scan, one line per seed."""
    rows = read(PATH)
    drawn = Figure(figsize=(8, 4), layout="constrained")
    ax = drawn.subplots()
    for color, method in zip(COLORS, METHODS, strict=False):
        if not (cell := best(rows, method)):
            continue
        label = f"{method}, lr {cell[0]:g}, weight decay {cell[1]:g}"
        for row in rows_at(rows, method, cell):
            steps, fitted, held_out = zip(*json.loads(row["curve"]), strict=True)
            ax.plot(steps, fitted, color=color, linewidth=0.6, alpha=0.4)
            ax.plot(steps, held_out, color=color, linewidth=1.8, label=label)
            label = ""
    ax.axhline(GOAL, color="0.7", linewidth=0.8)
    ax.set(xlabel="step", ylabel="accuracy: held out (thick), batch (thin)", ylim=(-0.02, 1.02))
    drawn.legend(frameon=False, loc="outside upper center")
    ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=130)


def rows_at(
    rows: Iterable[dict[str, str]], method: str, cell: tuple[float, float]
) -> list[dict[str, str]]:
    """A method's longest run per seed, at a learning rate and weight decay."""
    longest: dict[str, dict[str, str]] = {}
    for row in rows:
        at = (row["method"], float(row["lr"]), float(row["weight_decay"])) == (method, *cell)
        if at and int(row["steps"]) >= int(longest.get(row["seed"], row)["steps"]):
            longest[row["seed"]] = row
    return [longest[seed] for seed in sorted(longest)]


def scan() -> list[Run]:
    """Every cell, on seed 0, the methods in turn."""
    return [
        Run(method, *cell, 0, SCAN)
        for cells in zip(*CELLS.values(), strict=True)
        for method, cell in zip(CELLS, cells, strict=True)
    ]


def best(rows: Iterable[dict[str, str]], method: str) -> tuple[float, float] | None:
    """Learning rate and weight decay of the scan's fastest run, else of its most accurate.

    A run that has neither begun to generalize (5 %) nor fits its batches at the end (90 %, the
    mean of the last looks) comes last: its decay has taken what it had learnt.
    """
    own = [r for r in rows if (r["method"], r["steps"], r["seed"]) == (method, str(SCAN), "0")]
    if not own:
        return None

    def rank(row: dict[str, str]) -> tuple[float, bool, float]:
        held_out = float(row["held_out_accuracy"])
        fitted = fmean(fit for _, fit, _ in json.loads(row["curve"])[-5:])
        lost = held_out < 0.05 and fitted < 0.9
        return float(row["steps_to_goal"] or "inf"), lost, -held_out

    found = min(own, key=rank)
    return float(found["lr"]), float(found["weight_decay"])


def finals() -> list[Run]:
    """Every method at the best of its scan, on all seeds; a longer run that is there will do."""
    rows = read(PATH)
    found = []
    for seed in SEEDS:
        for method in CELLS:
            if cell := best(rows, method):
                own = [r for r in rows_at(rows, method, cell) if r["seed"] == str(seed)]
                if not any(int(row["steps"]) > FULL for row in own):
                    found.append(Run(method, *cell, seed, FULL))
    return found


def main(jobs: int | None = None) -> None:
    """Measure what is missing."""
    append_missing(PATH, scan(), KEYS, train, jobs)
    append_missing(PATH, finals(), KEYS, train, jobs)
    figure()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
