"""The tables of docs/results/paper.md, from the results files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, median

from benchmarks import convection, cost, images, memorization, text, zoo
from benchmarks.harness import read
from benchmarks.paper import dpo, grokking_report, phenomena, pixels
from benchmarks.paper import pinn as fresh
from sciml_snr.bench import tables

PUBLISHED = "SNRAdam, published rule, soft"
LABEL = "SNRAdam, label floor, own coordinates"
GROK, PHENOMENA = "benchmarks.paper.grokking", "benchmarks.paper.phenomena"


def claims() -> str:
    """The abstract's claims that have a number or a run, beside what was measured here."""
    lines = []
    for claim, measured, module in (
        (
            "grokking 4.9 times earlier: 95 % held out at 5,950 steps, not 29,450",
            grokking_report.claim(),
            GROK,
        ),
        (
            "PINN with noisy initial values at an error of 0.40 in 2.4 times fewer iterations than "
            "tuned AdamW",
            _pinn(),
            "benchmarks.paper.pinn",
        ),
        (
            "preferences, 30 % swapped: accuracy 0.566 to 0.641, 3.05 times closer",
            dpo.claim(),
            "benchmarks.paper.dpo",
        ),
        ("PINNs and neural fields do not memorize the noise", _memorized(), "benchmarks.images"),
        ("explains benign overfitting", _benign(), PHENOMENA),
        ("explains double descent", _descent(), PHENOMENA),
        ("explains implicit bias; holds where the kernel changes by O(1)", _spectral(), PHENOMENA),
        (
            "population risk from one run without validation data",
            _population_risk(),
            "benchmarks.memorization",
        ),
        ("one state vector more than Adam, at no extra cost", _cost(), "benchmarks.cost"),
    ):
        lines.append([claim, measured, f"`python -m {module}`"])
    return text.table("the paper|measured here|by", lines)


def _pinn() -> str:
    adamw, ours = (
        median(text.steps(_fastest(method), "iterations_to_0.4")) for method in ("AdamW", PUBLISHED)
    )
    return f"full batch: {adamw:.0f} and {ours:.0f} ({adamw / ours:.1f} times); {fresh.claim()}"


def _memorized() -> str:
    shares = []
    for method in (PUBLISHED, "SNRAdam, label floor"):
        rows = [row for row in read(images.PATH) if row["method"] == method]
        setting = {"noise": "25", "sigma": "1", "lr": "0.0001"}
        rows = [row for row in rows if setting.items() <= row.items()]
        shares.append(100 * median(float(row["memorized"]) for row in rows))
    pinns = [
        100 * median(float(row["memorized"]) for row in _fastest(method))
        for method in (PUBLISHED, LABEL)
    ]
    return (
        f"full batch: the published rule memorizes {shares[0]:.0f} % of an image's noise, "
        f"{pinns[0]:.1f} % of the PINN's; with the label floor {shares[1]:.0f} %, {pinns[1]:.1f} %"
    )


def _benign() -> str:
    many, few = (
        phenomena.medians("benign overfitting", width)
        for width in phenomena.WIDTHS["benign overfitting"]
    )
    return (
        f"seen: all noise fitted, risk {many['risk'][-1]:.2f} of {few['risk'][-1]:.2f} with few "
        "weak inputs; but fitted noise is in the channel, not in the reservoir"
    )


def _descent() -> str:
    widths = phenomena.WIDTHS["double descent"]
    found = {width: phenomena.medians("double descent", width) for width in widths}
    peak = max(widths, key=lambda width: found[width]["risk"][-1])
    return (
        f"seen: the peak at width {peak} (40 labels) is noise in the channel, "
        f"{found[peak]['risk_from_noise'][-1]:.2f} of a risk of {found[peak]['risk'][-1]:.2f}"
    )


def _spectral() -> str:
    found = phenomena.medians("spectral bias", phenomena.WIDTHS["spectral bias"][0])
    return (
        f"seen: low frequencies first, noise last, while the kernel changes by "
        f"{100 * found['kernel_drift'][-1]:.0f} %"
    )


def _population_risk() -> str:
    rows = [row for row in read(memorization.PATH) if row["case"].startswith("fresh")]
    rows = [row for row in rows if row["method"] == "SNRAdam"]
    found, true = (mean(float(row[name]) for row in rows) for name in ("change", "true_change"))
    return (
        f"on fresh batches {found:+.3f} against {true:+.3f} held out (SNRAdam, {len(rows)} runs); "
        "on re-used data it is no risk: [memorization](memorization.md)"
    )


def verdicts() -> str:
    """docs/when-it-pays.md: kinds of training, what was measured, and what follows."""
    overall = {cells[0]: cells[2] for cells in tables.overall_cells(zoo.compared())}
    zoo_rule = min(float(value) for name, value in overall.items() if "published" in name)
    full, label = (
        median(float(row["memorized"]) for row in _fastest(method)) for method in (PUBLISHED, LABEL)
    )
    lines = [
        [
            "fresh batches, errors in the labels (a PINN, 64 of 256 values a step)",
            fresh.claim().removeprefix("fresh minibatches: "),
            "no; with sigma yes",
        ],
        [
            "all data in every step, errors in the labels (a PINN)",
            f"memorized {100 * full:.1f} %, with the label floor {100 * label:.1f} %",
            "no effect; with sigma yes",
        ],
        [
            "the same, twelve equations",
            f"at its best gate {zoo_rule:.2f} times tuned Adam's error",
            "no",
        ],
        ["minibatches of an image's pixels", pixels.claim(), "with `soft` yes, with `snr` no"],
        [
            "passes through a table, weight decay does the work",
            grokking_report.claim(),
            "hardly; look for a better learning rate first",
        ],
        ["fine-tuning on preferences, 30 % of them wrong", dpo.claim(), "with `per_tensor` yes"],
    ]
    return text.table("training|measured|does it pay?", lines)


def _cost() -> str:
    times = [float(r["times_adam"]) for r in read(cost.PATH) if "published rule" in r["method"]]
    return "an iteration takes " + ", ".join(f"{t:.2f}" for t in times) + " times Adam's"


def pinn() -> str:
    """Convection: every method at the rate that is first at an error of 0.4."""
    lines = []
    first = {method: _fastest(method) for method in ("AdamW", PUBLISHED, LABEL)}
    adamw = median(text.steps(first["AdamW"], "iterations_to_0.4"))
    for method, rows in first.items():
        steps = text.steps(rows, "iterations_to_0.4")
        shares = [100 * float(row["memorized"]) for row in rows]
        cells = [method, rows[0]["lr"], str(len(rows)), _count(steps)]
        cells += [f"{adamw / median(steps):.2f}", f"{_spread(shares)} %"]
        lines.append(cells)
    titles = "method|lr|seeds|iterations to 0.4, median (range)|AdamW's / its|memorized at the end"
    return text.table(titles, lines)


def _fastest(method: str) -> text.Rows:
    """The rows of the learning rate with the lowest median, of those with the most seeds."""
    rows = text.rows_of(convection.METHODS[method], read(convection.PATH))
    rows = [row for row in rows if row["iterations"] == str(convection.ITERATIONS)]
    whole = text.whole(text.groups(rows, "lr").values())
    return min(whole, key=lambda rows: median(text.steps(rows, "iterations_to_0.4")))


def benign_overfitting() -> str:
    """Before the noise is fitted and after."""
    lines = []
    for width in phenomena.WIDTHS["benign overfitting"]:
        found = phenomena.medians("benign overfitting", width)
        # Where 95 % of the signal's error of 1 are gone, and at the end.
        learned = next(i for i, risk in enumerate(found["risk_from_signal"]) if risk < 0.05)
        for i in (learned, -1):
            cells = [str(width - 5), str(round(found["moments"][i]))]
            cells += [f"{found[name][i]:.3f}" for name in phenomena.ERRORS]
            cells += [text.percent(found[name][i]) for name in ("noise_channel", "memorized")]
            lines.append(cells)
    titles = "weak inputs|step|training error|risk|from the signal|from the noise|"
    return text.table(titles + "noise in the channel|noise memorized", lines)


def double_descent() -> str:
    """By width; the number of labels is 40."""
    lines = []
    for width in phenomena.WIDTHS["double descent"]:
        found = phenomena.medians("double descent", width)
        cells = [str(width), *(f"{found[name][1]:.3f}" for name in phenomena.ERRORS)]
        cells += [text.percent(found["noise_channel"][1]), f"{found['risk'][0]:.3f}"]
        lines.append(cells)
    titles = "width|training error|risk|from the signal|from the noise|noise in the channel|"
    return text.table(titles + "risk after 100 steps", lines)


def spectral_bias() -> str:
    """Along the run."""
    lines = []
    (width,) = phenomena.WIDTHS["spectral bias"]
    found = phenomena.medians("spectral bias", width)
    for i in range(0, len(found["moments"]), 3):
        shares = [*found["coefficients"][i]]
        shares += [found[name][i] for name in ("memorized", "signal_channel", "noise_channel")]
        cells = [str(round(found["moments"][i])), *map(text.percent, shares)]
        lines.append([*cells, *(f"{found[name][i]:.2f}" for name in ("risk", "kernel_drift"))])
    waves = "|".join(f"sin {k} x" if k > 1 else "sin x" for k in phenomena.FREQUENCIES)
    titles = f"step|{waves}|noise memorized|signal in the channel|noise in the channel|"
    return text.table(titles + "risk|kernel drift", lines)


TABLES: dict[str, Callable[[], str]] = {
    "paper_claims": claims,
    "when_it_pays": verdicts,
    "paper_pinn": pinn,
    "paper_pinn_minibatches": fresh.table,
    "paper_pinn_rates": fresh.rates,
    "paper_pixels": pixels.table,
    "paper_pixels_long": pixels.long_table,
    "paper_grokking": grokking_report.division,
    "paper_grokking_addition": grokking_report.addition,
    "paper_grokking_tuned": grokking_report.tuned,
    "paper_grokking_variations": grokking_report.variations,
    "paper_benign_overfitting": benign_overfitting,
    "paper_double_descent": double_descent,
    "paper_spectral_bias": spectral_bias,
    "paper_dpo": dpo.table,
    "paper_dpo_grid": dpo.grid,
}


def _count(steps: Sequence[float]) -> str:
    if len(steps) == 1 or min(steps) == max(steps):
        return text.count(steps[0])
    return f"{text.count(median(steps))} ({text.count(min(steps))} to {text.count(max(steps))})"


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
