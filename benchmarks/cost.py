"""What a step costs, of a DeepXDE model and of the optimizer alone: CPU time, in turns, one thread.

    python -m benchmarks.cost

writes benchmarks/results/cost.csv (iterations of DeepXDE models), step_cost.csv (the optimizer's
step alone) and pass_cost.csv (the gradient of 256 measured points and a draw of their noise, made
in several ways): medians over rounds of the time in units of the first's in the same round.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks import text
from benchmarks.harness import RESULTS, read, resolved
from sciml_snr import NoisyLoss, SNRAdam, rule
from sciml_snr.deepxde.split_step import install
from sciml_snr.runs.folder import append_row
from sciml_snr.runs.options import ProblemConfig
from sciml_snr.runs.run import compile_model

PATH, STEPS = RESULTS / "cost.csv", RESULTS / "step_cost.csv"
PASSES = RESULTS / "pass_cost.csv"
OWN = {"coordinates": "own"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("adam", {}),
    "adam, given the split step": ("adam", {}),
    "snr_adam, published rule": ("snr_adam", {"floor": "stream"}),
    "own coordinates, floor every step": ("snr_adam", {**OWN, "floor_every": 1}),
    "own coordinates, DeepXDE's train step": ("snr_adam", {**OWN, "split_step": False}),
    "own coordinates, floor every 10": ("snr_adam", {**OWN, "floor_every": 10}),
    "eigenbasis, floor every step": ("snr_adam", {"floor_every": 1}),
    "eigenbasis, DeepXDE's train step": ("snr_adam", {"split_step": False}),
    "eigenbasis, floor every 10": ("snr_adam", {"floor_every": 10}),
}
PROBLEMS = ("convection", "heat")
SIZES = {"20 small tensors": [3, *[24] * 9, 1], "10 million entries": [64, 2200, 2200, 2200, 64]}


def in_turns(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in so many rounds, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            seconds[name].append(call())
    return {name: own[1:] for name, own in seconds.items()}


def training(model: Any, count: int) -> Callable[[], float]:
    """A call that trains a DeepXDE model for so many iterations; gives CPU seconds of one."""

    def call() -> float:
        started = time.process_time()
        model.train(iterations=count, display_every=10**9, verbose=0)
        return (time.process_time() - started) / count

    return call


def ratio(own: list[float], of: list[float]) -> float:
    """Median over rounds."""
    return median(a / b for a, b in zip(own, of, strict=True))


def iterations(problem_name: str, rounds: int = 20, count: int = 60) -> list[dict[str, Any]]:
    """A DeepXDE iteration, one row per method."""
    torch.set_num_threads(1)
    calls = {}
    for name, (optimizer, options) in METHODS.items():
        config = resolved(ProblemConfig(problem_name, optimizer, snr_options=options))
        model = compile_model(config, config.build())
        if name == "adam, given the split step":
            install(model)
        calls[name] = training(model, count)
    seconds = in_turns(calls, rounds)
    return [
        {
            "problem": problem_name,
            "method": name,
            "milliseconds": 1000 * median(own),
            "times_adam": ratio(own, seconds["adam"]),
            "times_split_adam": ratio(own, seconds["adam, given the split step"]),
            "rounds": rounds,
        }
        for name, own in seconds.items()
    ]


def steps(size: str, chunk: int = rule.CHUNK, rounds: int = 15) -> list[dict[str, Any]]:
    """The optimizer's step alone, beside torch's AdamW(foreach=True), one row per case.

    Args:
        size: one of :data:`SIZES`.
        chunk: entries that are gone through at a time.
        rounds: of a few steps each.
    """
    torch.set_num_threads(1)
    count = 50 if size.startswith("20") else 3

    def stepped(kind: str) -> Callable[[], float]:
        torch.manual_seed(0)
        sizes = SIZES[size]
        layers = [nn.Linear(m, n) for m, n in itertools.pairwise(sizes)]
        net = nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])
        x, y = torch.randn(8, sizes[0]), torch.randn(8, sizes[-1])
        data = NoisyLoss(0.1)
        if kind == "AdamW":
            optimizer: Any = torch.optim.AdamW(net.parameters(), lr=1e-4, foreach=True)
        else:
            coordinates = "eigen" if kind.endswith("eigenbasis") else "own"
            options: dict[str, Any] = {"coordinates": coordinates, "noise": data}
            optimizer = SNRAdam(net.parameters(), lr=1e-4, **options)

        def call() -> float:
            spent = 0.0
            for _ in range(count):
                optimizer.zero_grad()
                loss = data(net(x), y)
                if "beside" in kind:
                    loss = loss + 1e-2 * net(x + 1).square().mean()
                loss.backward()
                started = time.process_time()
                optimizer.step()
                spent += time.process_time() - started
            return spent / count

        return call

    kinds = ["AdamW", "data alone", "beside exact terms"]
    if count > 3:
        kinds.append("beside exact terms, eigenbasis")
    before, rule.CHUNK = rule.CHUNK, chunk
    try:
        seconds = in_turns({kind: stepped(kind) for kind in kinds}, rounds)
    finally:
        rule.CHUNK = before
    return [
        {
            "size": size,
            "chunk": chunk,
            "case": kind,
            "milliseconds": 1000 * median(own),
            "times_adamw": ratio(own, seconds["AdamW"]),
            "rounds": rounds,
        }
        for kind, own in seconds.items()
    ]


def passes(points: int = 256, rounds: int = 60) -> list[dict[str, Any]]:
    """The gradient of measured points and a draw of their noise, by network 2-64-64-64-1, one row
    per way of making both."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = [2, 64, 64, 64, 1]
    layers = [nn.Linear(m, n) for m, n in itertools.pairwise(sizes)]
    net = nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])
    params, x = list(net.parameters()), torch.randn(points, 2)
    gradient, signs = factors = torch.randn(2, points, 1)
    half = torch.randperm(points)[: points // 2]

    def alone() -> None:
        torch.autograd.grad(net(x), params, gradient)

    def two_passes() -> None:
        y = net(x)
        torch.autograd.grad(y, params, gradient, retain_graph=True)
        torch.autograd.grad(y, params, signs)

    def batched() -> None:
        torch.autograd.grad(net(x), params, factors, is_grads_batched=True)

    def from_half() -> None:
        alone()
        torch.autograd.grad(net(x[half]), params, signs[half])

    ways = {
        "gradient alone": alone,
        "two backward passes through one graph": two_passes,
        "one batched backward pass": batched,
        "draw from half of the points": from_half,
    }

    def timed(way: Callable[[], None]) -> Callable[[], float]:
        def call() -> float:
            started = time.process_time()
            for _ in range(10):
                way()
            return (time.process_time() - started) / 10

        return call

    seconds = in_turns({name: timed(way) for name, way in ways.items()}, rounds)
    return [
        {
            "way": name,
            "milliseconds": 1000 * median(own),
            "times_gradient": ratio(own, seconds["gradient alone"]),
            "rounds": rounds,
        }
        for name, own in seconds.items()
    ]


def pass_table() -> str:
    """Time of the passes."""
    lines = [
        [row["way"], f"{float(row['milliseconds']):.2f}", f"{float(row['times_gradient']):.2f}"]
        for row in read(PASSES)
    ]
    return text.table("gradient and draw|ms|times the gradient alone", lines)


def table() -> str:
    """Time per iteration."""
    lines = []
    for row in read(PATH):
        numbers = (f"{float(row['milliseconds']):.1f}", f"{float(row['times_adam']):.2f}")
        more = f"{float(row['times_split_adam']):.2f}"
        lines.append([row["problem"], row["method"], *numbers, more])
    return text.table("problem|method|ms|times adam|times adam with the split step", lines)


def step_table() -> str:
    """Time of the optimizer's step alone."""
    lines = []
    for row in read(STEPS):
        if row["case"] != "AdamW":
            numbers = (f"{float(row['milliseconds']):.2f}", f"{float(row['times_adamw']):.2f}")
            lines.append([row["size"], row["case"], f"{int(row['chunk']):,}", *numbers])
    return text.table("parameters|case|entries at a time|ms|times AdamW(foreach=True)", lines)


if __name__ == "__main__":
    what = sys.argv[1:] or ["iterations", "steps", "passes"]
    if "iterations" in what:
        PATH.unlink(missing_ok=True)
        for problem_name in PROBLEMS:
            for row in iterations(problem_name):
                append_row(PATH, row)
    if "steps" in what:
        STEPS.unlink(missing_ok=True)
        for size in SIZES:
            for row in steps(size):
                append_row(STEPS, row)
        for chunk in (2**14, 2**16, 2**17):  # other ways to go through long vectors
            for row in steps("10 million entries", chunk):
                append_row(STEPS, row)
    if "passes" in what:
        PASSES.unlink(missing_ok=True)
        for row in passes():
            append_row(PASSES, row)
