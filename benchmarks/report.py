"""Tables from the results files, written into the documents that show them.

    python -m benchmarks.report            rewrite the tables
    python -m benchmarks.report --check    fail if one is stale

A document says where a table goes by a line ``<!-- table: NAME -->``; the table ends at
``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import (
    cost,
    fit_images,
    fit_sdf,
    heat,
    images,
    memorization,
    networks,
    problem_pages,
    replicas,
    stopping,
    zoo,
)
from benchmarks.convection import ITERATIONS, LONG, METHODS, PATH, least_squares
from benchmarks.harness import RESULTS, THRESHOLDS, read
from benchmarks.paper import report as paper

ROOT = Path(__file__).parents[1]
PAGES = ("benchmarks", "convection", "images", "memorization", "problems", "research", "surfaces")
PAGES += ("paper",)
DOCUMENTS = (ROOT / "README.md", *(ROOT / f"docs/{page}.md" for page in PAGES))
Rows = list[dict[str, str]]


def convection_grid() -> str:
    """Every method at every learning rate."""
    lines = [
        "| method | lr | seeds | final | best | best at | "
        + " | ".join(f"to {level}" for level in THRESHOLDS)
        + " | memorized | seconds |",
        "| --- " * 11 + "|",
    ]
    for (method, lr), rows in _groups().items():
        cells = [
            method,
            lr,
            str(len(rows)),
            _spread(rows, "final_error"),
            _spread(rows, "best_error"),
        ]
        cells += [f"{median(_column(rows, 'best_iteration')):.0f}"]
        cells += [_reached(rows, f"iterations_to_{level}") for level in THRESHOLDS]
        cells += [f"{100 * median(_column(rows, 'memorized')):.1f} %"]
        cells += [f"{median(_column(rows, 'seconds')):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def convection_tuned() -> str:
    """Every method at the rate with the lowest median final, of those with the most seeds."""
    lines = [
        "| method | lr | seeds | final error, median (range) | best on the way | noise memorized |",
        "| --- " * 6 + "|",
    ]
    groups = _groups()
    for method in METHODS:
        own = {lr: rows for (name, lr), rows in groups.items() if name == method}
        if not own:
            continue
        most = max(map(len, own.values()))
        own = {lr: rows for lr, rows in own.items() if len(rows) == most}
        lr, rows = min(own.items(), key=lambda item: median(_column(item[1], "final_error")))
        share = f"{100 * median(_column(rows, 'memorized')):.1f} %"
        cells = [method, lr, str(len(rows)), _spread(rows, "final_error")]
        lines.append("| " + " | ".join([*cells, _spread(rows, "best_error"), share]) + " |")
    return "\n".join(lines)


def convection_held() -> str:
    """Long runs against their own best and AdamW's oracle: by seed, best moment and rate."""
    oracle: dict[str, float] = {}
    for (method, _), rows in _groups().items():
        for row in rows if method == "AdamW" else []:
            error = float(row["best_error"])
            oracle[row["seed"]] = min(error, oracle.get(row["seed"], error))
    lines = [
        "| method, 20,000 iterations | lr | seeds | final error, median (range) | "
        "final / own best | "
        "final / AdamW's oracle | memorized | to 0.2 |",
        "| --- " * 8 + "|",
    ]
    for (method, lr), rows in _groups(LONG).items():
        own = [float(r["final_error"]) / float(r["best_error"]) for r in rows]
        ratio = [float(r["final_error"]) / oracle[r["seed"]] for r in rows]
        cells = [method, lr, str(len(rows)), _spread(rows, "final_error"), _range(own)]
        share = f"{100 * median(_column(rows, 'memorized')):.1f} %"
        cells += [_range(ratio), share, _reached(rows, "iterations_to_0.2")]
        lines.append("| " + " | ".join(cells) + " |")
    known = {seed: least_squares(int(seed)) for seed in oracle}
    ratio = [error / oracle[seed] for seed, error in known.items()]
    cells = ["least squares that knows the solution's form", "", str(len(known))]
    cells += [_range(list(known.values())), "", _range(ratio), "", ""]
    lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def image_cells() -> str:
    """PSNR by image and noise: Adam's oracle, its stopping rules, and what ours ends with."""
    rows = [row for row in read(images.PATH) if row["sigma"] == "1"]
    ours = [method for method in images.METHODS if "label" in method]
    lines = [
        "| image | noise | Adam's oracle | discrepancy | SURE, twin | 10 % held out | "
        + " | ".join(f"{method}: final (best), memorized" for method in ours)
        + " |",
        "| --- " * (6 + len(ours)) + "|",
    ]
    for noise in images.NOISES:
        for image in images.CORNERS:
            cell = [r for r in rows if (r["image"], r["noise"]) == (image, str(noise))]
            adam = [r for r in cell if r["method"] == "Adam"]
            twin = [r for r in adam if r["sure_psnr"]]
            held = [r for r in cell if r["held_out_psnr"]]
            if not twin or not held:
                continue
            best = max(adam, key=lambda r: float(r["best_psnr"]))
            found = [image, str(noise), f"{float(best['best_psnr']):.2f} (lr {best['lr']})"]
            found += [f"{float(max(r['discrepancy_psnr'] for r in adam)):.2f}"]
            found += [
                f"{float(twin[0]['sure_psnr']):.2f}",
                f"{float(held[0]['held_out_psnr']):.2f}",
            ]
            for method in ours:
                own = [r for r in cell if r["method"] == method]
                found += [_image_cell(own[0]) if own else ""]
            lines.append("| " + " | ".join(found) + " |")
    return "\n".join(lines)


def image_sigma() -> str:
    """What a wrong or estimated sigma, or the published rule, does to one cell."""
    lines = ["| method | sigma told | final (best) PSNR, memorized |", "| --- | --- | --- |"]
    for row in read(images.PATH):
        cell = (row["image"], row["noise"], row["seed"])
        if cell == ("camera", "25", "0") and "Adam," not in row["method"].replace("SNRAdam", ""):
            told = {"1": "true"}.get(row["sigma"], row["sigma"])
            told += "" if row["sigma"] == "1" else f": {float(row['told_sigma']):.1f}"
            lines.append(f"| {row['method']}, lr {row['lr']} | {told} | {_image_cell(row)} |")
    return "\n".join(lines)


def heat_inverse() -> str:
    """Errors of the unknown diffusivity and of the field."""
    lines = [
        "| method | lr | seeds | diffusivity error | field, final | field, best |",
        "| --- " * 6 + "|",
    ]
    rows = read(heat.PATH)
    for method, config in heat.METHODS.items():
        for lr in heat.LRS:
            own = [r for r in _rows_of(config, rows) if float(r["lr"]) == lr]
            if own:
                errors = [abs(json.loads(r["unknowns"])["diffusivity"] / 0.1 - 1) for r in own]
                cells = [method, str(lr), str(len(own)), _range(errors)]
                cells += [_spread(own, "final_error"), _spread(own, "best_error")]
                lines.append("| " + " | ".join(cells) + " |")
    stops = [r for r in read(stopping.PATH) if r["problem"] == "heat" and r["held_out_error"]]
    for lr in heat.LRS:
        own = [r for r in stops if float(r["lr"]) == lr]
        if own:
            cells = ["Adam, 10 % held out", str(lr), str(len(own))]
            cells += [_spread(own, "held_out_unknown_error"), _spread(own, "held_out_error")]
            lines.append("| " + " | ".join([*cells, _spread(own, "best_error")]) + " |")
    return "\n".join(lines)


GATE_ALONE = RESULTS / "gate_alone.csv"
"""Made by the rule of commit 3d26372, which stopped exact terms where the gate was closed."""


def gate_alone() -> str:
    """Convection and heat by the gate alone, at lr 3e-3."""
    lines = [
        "| problem | iterations | optimizer, gate | seeds | final | best | memorized |",
        "| --- " * 7 + "|",
    ]
    groups: dict[tuple[str, ...], Rows] = {}
    for row in read(GATE_ALONE):
        if row["lr"] == "0.003":
            key = ("problem", "iterations", "optimizer", "snr_options")
            groups.setdefault(tuple(row[name] for name in key), []).append(row)
    for (problem, iterations, optimizer, options), rows in groups.items():
        chosen = json.loads(options)
        stein = chosen.get("gate", "snr" if optimizer == "snr_adam" else "stein") == "stein"
        z = chosen.get("z", 3.0 if optimizer == "snr_adam" else 2.0)
        name = f"{optimizer}, {'stein' if stein else 'snr'}, z = {z:g}"
        cells = [problem, iterations, name, str(len(rows)), _spread(rows, "final_error")]
        cells += [_spread(rows, "best_error")]
        cells += [f"{100 * median(_column(rows, 'memorized')):.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def convection_stops() -> str:
    """AdamW with a stopping rule."""
    lines = ["| AdamW stopped by | lr | seeds | error | / its own best |", "| --- " * 5 + "|"]
    rows = [r for r in read(stopping.PATH) if r["problem"] == "convection"]
    for rule in ("discrepancy", "sure", "held_out", "final"):
        for lr in sorted({r["lr"] for r in rows}):
            own = [r for r in rows if r["lr"] == lr and r[f"{rule}_error"]]
            own = [r for r in own if rule != "final" or r["rule"] != "10 % held out"]
            if own:
                ratio = [float(r[f"{rule}_error"]) / float(r["best_error"]) for r in own]
                name = rule.replace("_", " ") if rule != "sure" else "SURE, twin"
                cells = [name, lr, str(len(own)), _spread(own, f"{rule}_error"), _range(ratio)]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replica_floor() -> str:
    """The floor from replicas of the run, by setting."""
    groups: dict[tuple[str, ...], Rows] = {}
    for row in read(replicas.PATH):
        keys = ("problem", "replicas", "c", "pooling", "iterations")
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    lines = [
        "| problem | replicas | z^2 | pooled | iterations | seeds | final | best | memorized |",
        "| --- " * 9 + "|",
    ]
    for cells, rows in groups.items():
        spreads = [_spread(rows, "final"), _spread(rows, "best")]
        share = f"{100 * median(_column(rows, 'memorized')):.1f} %"
        lines.append("| " + " | ".join([*cells, str(len(rows)), *spreads, share]) + " |")
    return "\n".join(lines)


def costs() -> str:
    """Time per iteration."""
    lines = ["| problem | method | ms | times adam |", "| --- " * 4 + "|"]
    for r in read(cost.PATH):
        numbers = f"{float(r['milliseconds']):.1f} | {float(r['times_adam']):.2f}"
        lines.append(f"| {r['problem']} | {r['method']} | {numbers} |")
    return "\n".join(lines)


def fit_image_cells() -> str:
    """PSNR and SSIM by image and noise, medians over draws: ours, Adam, and what users take."""
    cells = [(i, n, 0.0) for n in fit_images.NOISES for i in fit_images.CORNERS]
    return _fit_image_table(cells, list(fit_images.DENOISERS))


def fit_image_gaps() -> str:
    """The same with most pixels missing."""
    cells = [(image, 25, fit_images.GAPS) for image in fit_images.CORNERS]
    return _fit_image_table(cells, list(fit_images.INPAINTERS))


def _fit_image_table(cells: list[tuple[str, int, float]], classics: list[str]) -> str:
    names = ["Adam, oracle", "Adam, final", "ours", *classics]
    titles = ["image", "noise", "draws", "Adam's rates", "memorized", *names]
    lines = ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
    for image, noise, gaps in cells:
        if found := _fit_image_scores(image, noise, gaps, classics):
            line = [image, str(noise), f"{found['draws'][0]:.0f}", f"{found['rates'][0]:.0f}"]
            line += [f"{100 * found['memorized'][0]:.0f} %"]
            line += [f"{found[n][0]:.2f} / {found[n][1]:.2f}" for n in names]
            lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines).replace("| ours |", "| fit_image, final |")


def fit_image_differences() -> str:
    """fit_image's final PSNR less that of others, over all cells."""
    lines = [
        "| fit_image, final PSNR, less | cells | mean | least | most |",
        "| --- " * 5 + "|",
    ]
    for gaps, classics in ((0.0, fit_images.DENOISERS), (fit_images.GAPS, fit_images.INPAINTERS)):
        cells = [(i, n) for i in fit_images.CORNERS for n in fit_images.NOISES]
        found = [s for cell in cells if (s := _fit_image_scores(*cell, gaps, list(classics)))]
        for name in ("Adam, oracle", "Adam, final", *classics):
            ours = [s["ours"][0] - s[name][0] for s in found]
            if ours and name != "noisy":
                kind = "70 % missing: " if gaps else ""
                numbers = (sum(ours) / len(ours), min(ours), max(ours))
                text = " | ".join(f"{x:+.2f}" for x in numbers)
                lines.append(f"| {kind}{name} | {len(ours)} | {text} |")
    return "\n".join(lines)


def _fit_image_scores(
    image: str, noise: int, gaps: float, classics: list[str]
) -> dict[str, tuple[float, ...]]:
    """Name -> medians over the draws that all methods have; empty where there is none."""
    rows = [
        row
        for row in read(fit_images.PATH)
        if (row["image"], row["noise"], row["gaps"]) == (image, str(noise), str(gaps))
    ]
    draws: list[dict[str, tuple[float, ...]]] = []
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        by_method = {row["method"]: row for row in own}
        adam = {float(row["lr"]): row for row in own if row["method"] == "Adam"}
        if fit_images.FINAL_LR not in adam or not {"ours", *classics} <= by_method.keys():
            continue
        best = max(adam.values(), key=lambda row: float(row["best_psnr"]))
        final = adam[fit_images.FINAL_LR]
        ours = by_method["ours"]
        draw = {
            "Adam, oracle": (float(best["best_psnr"]), float(best["best_ssim"])),
            "Adam, final": (float(final["psnr"]), float(final["ssim"])),
            "memorized": (float(ours["memorized"]),),
            "rates": (float(len(adam)),),
        }
        for name in ("ours", *classics):
            draw[name] = (float(by_method[name]["psnr"]), float(by_method[name]["ssim"]))
        draws.append(draw)
    if not draws:
        return {}
    found = {
        name: tuple(median(draw[name][i] for draw in draws) for i in range(len(values)))
        for name, values in draws[0].items()
    }
    return {**found, "draws": (float(len(draws)),)}


def image_networks() -> str:
    """What networks of several sizes and frequencies reach on one crop."""
    lines = [
        "| noise | network | layers | width | frequency | lr | final | half way | best (at) | "
        "memorized | ms per step |",
        "| --- " * 11 + "|",
    ]
    for run in networks.RUNS:
        key = {name: str(getattr(run, name)) for name in networks.KEYS}
        for row in read(networks.PATH):
            if key.items() <= row.items():
                cells = [key[n] for n in ("noise", "network", "layers", "width", "frequency", "lr")]
                cells += [f"{float(row[name]):.2f}" for name in ("final_psnr", "half_psnr")]
                cells += [f"{float(row['best_psnr']):.2f} ({row['best_step']})"]
                cells += [f"{100 * float(row['memorized']):.0f} %"]
                cells += [f"{float(row['cpu_milliseconds']):.0f}"]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fit_image_costs() -> str:
    """Time per step and peak memory on a 512 x 512 RGB image, medians over repeats."""
    rows = read(fit_images.COST)
    lines = [
        "| method | ms per step | times plain | MB at most | times plain |",
        "| --- " * 5 + "|",
    ]
    by_method: dict[str, Rows] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    if "plain" not in by_method:
        return "\n".join(lines)
    columns = ("milliseconds", "megabytes")
    plain = [median(_column(by_method["plain"], c)) for c in columns]
    for method, own in by_method.items():
        ms, mb = (median(_column(own, c)) for c in columns)
        name = "plain loop, Adam" if method == "plain" else f"fit_image, {method}"
        numbers = f"{ms:.0f} | {ms / plain[0]:.2f} | {mb:.0f} | {mb / plain[1]:.2f}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def fit_sdf_cells() -> str:
    """Chamfer distance and normal consistency by shape and noise, medians over draws."""
    rates = " / ".join(f"{lr:g}" for lr in fit_sdf.LRS["Adam"])
    lines = [
        "| shape | noise | draws | Adam, oracle | Adam, final at lr "
        + rates
        + " | SNRAdam, final | "
        "/ Adam's oracle | / Adam's best final | SNRSOAP, final | screened Poisson, best depth |",
        "| --- " * 10 + "|",
    ]
    for noise in reversed(fit_sdf.NOISES):
        for shape in fit_sdf.SHAPES:
            draws = [d for draw in range(5) if (d := _fit_sdf_draw(shape, noise, draw))]
            if not draws:
                continue
            cells = [shape, f"{noise:g} %", str(len(draws))]
            cells += [
                _pair(draws, "oracle"),
                " / ".join(_middle(draws, lr) for lr in rates.split(" / ")),
            ]
            cells += [_pair(draws, "SNRAdam")]
            for other in ("oracle", "final"):
                ratio = median(d["SNRAdam"][0] / d[other][0] for d in draws)
                cells.append(f"{ratio:.2f}")
            for method in ("SNRSOAP", fit_sdf.POISSON):
                cells.append(_pair(draws, method) if all(method in d for d in draws) else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _pair(draws: list[dict[str, tuple[float, float]]], name: str) -> str:
    chamfer, normals = (median(d[name][i] for d in draws) for i in range(2))
    return f"{chamfer:.3f} / {normals:.3f}"


def _middle(draws: list[dict[str, tuple[float, float]]], name: str) -> str:
    return f"{median(d[name][0] for d in draws):.3f}"


def _fit_sdf_draw(shape: str, noise: float, draw: int) -> dict[str, tuple[float, float]]:
    """Name -> Chamfer distance and normal consistency; empty where Adam or ours is missing."""
    cell = {"shape": shape, "noise": str(noise), "draw": str(draw)}
    rows = [row for row in read(fit_sdf.PATH) if cell.items() <= row.items()]

    def of(method: str, when: str) -> dict[str, tuple[float, float]]:
        return {
            f"{float(r['lr']):g}": (
                float(r[f"{when}_chamfer"]),
                float(r[f"{when}_normal_consistency"]),
            )
            for r in rows
            if r["method"] == method
        }

    adam, ours = of("Adam", "final"), of("SNRAdam", "final")
    if len(adam) < len(fit_sdf.LRS["Adam"]) or not ours:
        return {}
    found = {**adam, "oracle": min(of("Adam", "best").values()), "final": min(adam.values())}
    for method in ("SNRAdam", "SNRSOAP", fit_sdf.POISSON):
        if by_rate := of(method, "final"):
            found[method] = min(by_rate.values())
    return found


TABLES: dict[str, Callable[[], str]] = {
    "problems": problem_pages.overview,
    "problem_details": problem_pages.details,
    "convection_grid": convection_grid,
    "convection_tuned": convection_tuned,
    "convection_held": convection_held,
    "convection_stops": convection_stops,
    "gate_alone": gate_alone,
    "image_cells": image_cells,
    "image_sigma": image_sigma,
    "heat_inverse": heat_inverse,
    "costs": costs,
    "replica_floor": replica_floor,
    "fit_image_cells": fit_image_cells,
    "fit_sdf_cells": fit_sdf_cells,
    "fit_image_gaps": fit_image_gaps,
    "fit_image_differences": fit_image_differences,
    "fit_image_costs": fit_image_costs,
    "image_networks": image_networks,
    "memorization_shares": memorization.shares,
    "memorization_stops": memorization.stops,
    "memorization_fresh": memorization.fresh_batches,
    "zoo_progress": zoo.progress,
    "zoo_overall": zoo.overall,
    "zoo_cells": zoo.cells,
    "zoo_figures": zoo.figures,
    "zoo_problems": zoo.problems,
    "zoo_methods": zoo.methods,
    **paper.TABLES,
}


def render(text: str) -> str:
    """The document with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


def stale() -> list[Path]:
    """Documents whose tables are not those of the results files."""
    return [path for path in DOCUMENTS if render(path.read_text()) != path.read_text()]


def _groups(iterations: int = ITERATIONS) -> dict[tuple[str, str], Rows]:
    """(method, learning rate) -> its rows, in the order of METHODS and of the learning rates."""
    rows = [row for row in read(PATH) if row["iterations"] == str(iterations)]
    groups: dict[tuple[str, str], Rows] = {}
    for method, config in METHODS.items():
        own = _rows_of(config, rows)
        for row in sorted(own, key=lambda row: float(row["lr"])):
            groups.setdefault((method, row["lr"]), []).append(row)
    return groups


def _rows_of(config: tuple[str, dict[str, Any]], rows: Rows) -> Rows:
    """The rows of a method: its optimizer with its options."""
    optimizer, options = config
    return [
        row
        for row in rows
        if row["optimizer"] == optimizer and json.loads(row["snr_options"]) == options
    ]


def _column(rows: Rows, name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _spread(rows: Rows, name: str) -> str:
    return _range(_column(rows, name))


def _range(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _image_cell(row: dict[str, str]) -> str:
    final, best = float(row["final_psnr"]), float(row["best_psnr"])
    return f"{final:.2f} ({best:.2f}), {100 * float(row['memorized']):.0f} %"


def _reached(rows: Rows, name: str) -> str:
    """Median number of iterations; runs that never got there count as infinite."""
    value = median(float(row[name] or "inf") for row in rows)
    return "never" if value == float("inf") else f"{value:.0f}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit("\n".join(f"{path} is stale: run this without --check" for path in stale()) or 0)
    zoo.draw()
    for path in stale():
        path.write_text(render(path.read_text()))
