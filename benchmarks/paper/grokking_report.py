"""Tables and the figure of the grokking runs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median

import matplotlib
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks import text
from benchmarks.harness import FIGURES, read
from benchmarks.paper import grokking
from sciml_snr.figures import COLORS

ORDER = list(grokking.METHODS)
DRAWN = ("AdamW", "snr, softness 0.1", "snr", "soft, lambda 0, finite alpha, even steps")
LETTERS = {"on the way": "w", "memorizes": "m", "loses the table": "l", "learns nothing": "n"}
"""Outcomes in the phase diagram."""
Cells = dict[tuple[float, float], text.Rows]
"""(learning rate, decay) -> rows, of one method."""


def division() -> str:
    """The paper's task: every method, rate and decay, on the seeds that there are."""
    lines = []
    for (method, lr, decay), rows in _cells(grokking.DIVISION, "0.25", "512").items():
        lines.append([method, lr, f"{float(decay):g}", str(len(rows)), *_outcome(rows)])
    return text.table(
        "method|lr|weight decay|seeds|steps to fit|steps to 95 % held out|outcome|"
        "held out at the end|norm of the weights|mean gate",
        lines,
    )


def addition() -> str:
    """The perceptron: outcomes of every method at every rate and decay."""
    cells = _cells(grokking.ADDITION, "0.4", "512")
    at = [(str(lr), str(decay)) for lr, decay in grokking.CELLS]
    lines = []
    for method in ORDER:
        own = [cells.get((method, *cell)) for cell in at]
        if any(own):
            lines.append([method, *(_short(rows) if rows else "" for rows in own)])
    titles = ["method", *(f"lr {lr:g}, decay {decay:g}" for lr, decay in grokking.CELLS)]
    return text.table(titles, lines)


def tuned() -> str:
    """The perceptron, each method at the fastest of 16 pairs of rate and decay, on seed 0."""
    lines = []
    grid = _grid()
    best = grokking.fastest(list(grid))
    for method, cells in grid.items():
        own, equal = cells[best[method]], cells[best["AdamW"]]
        seconds = [
            float(row["cpu_milliseconds"]) * steps / 1000
            for row, steps in zip(own, text.steps(own, "steps_to_goal"), strict=True)
        ]
        generalizes = sum(bool(rows[0]["steps_to_goal"]) for rows in cells.values())
        line = [method, f"{generalizes} of {len(cells)}", *(f"{x:g}" for x in best[method])]
        line += [str(len(own)), _steps(own, "steps_to_goal"), f"{median(seconds):.1f}"]
        lines.append([*line, _short(equal), _times(grid["AdamW"], cells)])
    return text.table(
        "method|cells that generalize|best lr|decay|seeds|steps to 95 % held out|"
        "CPU seconds to there|at AdamW's best cell|"
        "AdamW's / its in the same cell: median (range), cells",
        lines,
    )


def _grid() -> dict[str, Cells]:
    """Method -> the cells of its phase diagram, of the methods that have all of it."""
    cells = _cells(grokking.ADDITION, "0.4", "512")
    found: dict[str, Cells] = {}
    for method in ORDER:
        own = {(lr, decay): cells.get((method, str(lr), str(decay))) for lr, decay in grokking.GRID}
        whole = {cell: rows for cell, rows in own.items() if rows}
        if len(whole) == len(own):
            found[method] = whole
    return found


def _times(adamw: Cells, cells: Cells) -> str:
    """AdamW's steps over a method's, in the cells in which both generalize, seed 0."""
    goals = [text.steps([rows[0], cells[cell][0]], "steps_to_goal") for cell, rows in adamw.items()]
    found = [base / own for base, own in goals if max(base, own) < float("inf")]
    if not found:
        return "-"
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f}), {len(found)}"


def variations() -> str:
    """Other parts of the table to train on, and the full batch, for both tasks."""
    lines = []
    rows = read(grokking.PATH)
    for task, fraction, batch in dict.fromkeys(
        (r["task"], r["fraction"], r["batch"]) for r in rows
    ):
        if (fraction, batch) in (("0.25", "512"), ("0.4", "512")):
            continue
        for (method, lr, decay), own in _cells(task, fraction, batch).items():
            part = text.percent(float(fraction))
            lines.append([task, part, batch, method, lr, f"{float(decay):g}", _short(own)])
    if not lines:
        return "*No such run has been made yet.*"
    return text.table("task|trained on|batch|method|lr|weight decay|outcome", lines)


def claim() -> str:
    """Both tasks: AdamW at its fastest settings and the published rule at its."""
    cells = _cells(grokking.DIVISION, "0.25", "512")
    adamw, rule = (
        {key: rows for key, rows in cells.items() if is_one(key[0])}
        for is_one in ("AdamW".__eq__, is_published)
    )
    base = min(adamw.values(), key=_rank)
    best = min(rule.values(), key=_rank)
    found = f"division: AdamW, best of {len(adamw)} settings, {_steps(base, 'steps_to_goal')} steps"
    found += f" (seeds: {len(base)}), the rule, best of {len(rule)}, "
    found += f"{_steps(best, 'steps_to_goal')} ({best[0]['method']}; seeds: {len(best)})"
    grid = _grid()
    first = {m: grid[m][cell] for m, cell in grokking.fastest(list(grid)).items()}
    if published := [method for method in first if is_published(method)]:
        quickest = min(published, key=lambda m: _rank(first[m]))
        found += f"; addition, best of {len(grokking.GRID)} each: AdamW "
        found += f"{_steps(first['AdamW'], 'steps_to_goal')}, the rule "
        found += f"{_steps(first[quickest], 'steps_to_goal')} ({quickest})"
    return found


def is_published(method: str) -> bool:
    """Whether a method is the published rule, in one of its forms: not AdamW, nor ours."""
    is_ours = method.endswith(("gated decay", "mean gate", "even steps"))
    return method.startswith(("snr", "soft")) and not is_ours


def _cells(task: str, fraction: str, batch: str) -> dict[tuple[str, str, str], text.Rows]:
    """(method, lr, decay) -> its longest run of every seed, in the order of the methods."""
    chosen = (task, fraction, batch)
    rows = [r for r in read(grokking.PATH) if (r["task"], r["fraction"], r["batch"]) == chosen]
    found = {}
    for key, own in text.groups(rows, "method", "lr", "weight_decay").items():
        longest = {}
        for row in sorted(own, key=lambda row: int(row["steps"])):
            longest[row["seed"]] = row
        found[key] = [longest[seed] for seed in sorted(longest)]
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def _rank(rows: text.Rows) -> tuple[float, float]:
    """The fastest first; of those that do not get there, the most accurate."""
    steps, accuracies = text.steps(rows, "steps_to_goal"), text.column(rows, "held_out_accuracy")
    return median(steps), -median(accuracies)


def _place(key: tuple[str, str, str]) -> tuple[int, float, float]:
    method, lr, decay = key
    return ORDER.index(method), float(lr), float(decay)


def outcome(row: dict[str, str]) -> str:
    """What became of a run.

    *generalizes*: 95 % held out. *on the way*: 10 %. *memorizes*: it fits its batches (90 %, the
    mean of the last looks) and nothing else. *loses the table*: it has fitted them better than at
    the end. *learns nothing*: it never fitted half of them.
    """
    if row["steps_to_goal"]:
        return "generalizes"
    if float(row["held_out_accuracy"]) >= 0.1:
        return "on the way"
    curve = json.loads(row["curve"])
    fitted = [look[1] for look in curve]
    last = fmean(fitted[-5:])
    if last >= 0.9:
        return "memorizes"
    return "loses the table" if max(fitted) >= max(0.5, last + 0.1) else "learns nothing"


def _outcomes(rows: text.Rows) -> str:
    found = text.groups([{"outcome": outcome(row)} for row in rows], "outcome")
    if len(found) == 1:
        return next(iter(found))[0]
    return ", ".join(f"{name} ({len(own)})" for (name,), own in found.items())


def _outcome(rows: text.Rows) -> list[str]:
    cells = [_steps(rows, "steps_to_fit"), _steps(rows, "steps_to_goal"), _outcomes(rows)]
    cells.append(text.percent(median(text.column(rows, "held_out_accuracy"))))
    last = [json.loads(row["curve"])[-1] for row in rows]
    known = [look for look in last if len(look) == 5]
    if not known:
        return [*cells, "", ""]
    norm, gate = (median(look[i] for look in known) for i in (3, 4))
    return [*cells, f"{norm:.0f}", f"{gate:.3f}"]


def _steps(rows: text.Rows, name: str) -> str:
    steps = text.steps(rows, name)
    middle = median(steps)
    reached = [step for step in steps if step < float("inf")]
    if not reached:
        return f"not in {min(int(row['steps_taken']) for row in rows)}"
    if middle == float("inf"):
        return f"{median(reached):.0f} ({len(reached)} of {len(rows)})"
    missed = len(rows) - len(reached)
    return f"{middle:.0f}" + (f" ({len(reached)} of {len(rows)})" if missed else "")


def _short(rows: text.Rows) -> str:
    """The outcome, with the steps that it took."""
    steps = text.steps(rows, "steps_to_goal")
    if median(steps) < float("inf"):
        reached = sum(step < float("inf") for step in steps)
        of = f" ({reached} of {len(rows)})" if len(rows) > 1 else ""
        return f"**{median(steps):.0f}**{of}"
    share = text.percent(median(text.column(rows, "held_out_accuracy")))
    name = _outcomes(rows)
    return f"{name}, {share}" if name == "on the way" else name


def figures(folder: Path = FIGURES) -> None:
    """docs/figures/grokking.png and grokking_phases.png."""
    folder.mkdir(parents=True, exist_ok=True)
    courses().savefig(folder / "grokking.png", dpi=130)
    phases().savefig(folder / "grokking_phases.png", dpi=130)


def courses() -> Figure:
    """Accuracies, norms of the weights, and mean gates over steps, of the perceptron."""
    drawn = Figure(figsize=(10, 3.2), layout="constrained")
    axes = drawn.subplots(1, 3)
    cells = _cells(grokking.ADDITION, "0.4", "512")
    for color, method in zip(COLORS, DRAWN, strict=False):
        rows = cells.get((method, "0.001", "1.0"))
        if not rows:
            continue
        curve = [look for look in json.loads(rows[0]["curve"]) if len(look) == 5]
        steps, fitted, held_out, norm, gate = zip(*curve, strict=True)
        axes[0].plot(steps, fitted, color=color, linewidth=0.8, alpha=0.6)
        axes[0].plot(steps, held_out, color=color, linewidth=1.8, label=method)
        axes[1].plot(steps, norm, color=color)
        axes[2].semilogy(steps, gate, color=color)
    axes[0].set(ylabel="accuracy: held out (thick), batch (thin)", ylim=(-0.02, 1.02))
    axes[1].set(ylabel="norm of the weights")
    axes[2].set(ylabel="mean gate")
    for ax in axes:
        ax.set_xlabel("step")
        ax.spines[["top", "right"]].set_visible(False)
    drawn.legend(frameon=False, loc="outside upper center", ncols=len(DRAWN))
    return drawn


def phases() -> Figure:
    """The perceptron's phase diagram: a panel a method, learning rate by decay."""
    grid = _grid()
    columns = 5
    rows = -(-len(grid) // columns)
    drawn = Figure(figsize=(2.3 * columns, 2.2 * rows + 0.5), layout="constrained")
    axes = list(drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    rates = sorted({lr for lr, _ in grokking.GRID})
    decays = sorted({decay for _, decay in grokking.GRID})
    norm, colors = LogNorm(400, grokking.QUICK), matplotlib.colormaps["viridis_r"]
    for ax, (method, cells) in zip(axes, grid.items(), strict=False):
        for (lr, decay), runs in cells.items():
            x, y = rates.index(lr), decays.index(decay)
            goal = runs[0]["steps_to_goal"]
            face = colors(norm(float(goal))) if goal else "0.93"
            dark = bool(goal) and norm(float(goal)) > 0.45
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, edgecolor="w"))
            words = goal or LETTERS[outcome(runs[0])]
            ax.text(x, y, words, ha="center", va="center", fontsize=8, color="w" if dark else "k")
        title = method.replace(", even", ",\neven") if len(method) > 30 else method
        ax.set_title(title, fontsize=8)
        ax.set(xlim=(-0.5, len(rates) - 0.5), ylim=(-0.5, len(decays) - 0.5))
        ax.set_xticks(range(len(rates)), [f"{lr:g}" for lr in rates], fontsize=7)
        ax.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays], fontsize=7)
        ax.tick_params(length=0)
    for ax in axes[len(grid) :]:
        ax.set_visible(False)
    drawn.supxlabel("learning rate", fontsize=9)
    drawn.supylabel("weight decay", fontsize=9)
    return drawn


if __name__ == "__main__":
    figures()
