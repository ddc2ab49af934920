"""Tables from the results files, written into the documents that show them.

    python -m benchmarks.report            rewrite the tables
    python -m benchmarks.report --check    fail if one is stale

A document says where a table goes by a line ``<!-- table: NAME -->``; the table ends at
``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    choices,
    command_pages,
    convection,
    cost,
    coverage,
    curves,
    equal_time,
    fields,
    fit_images,
    fit_sdf,
    gauss_newton,
    gauss_newton_goals,
    gauss_newton_size,
    heat,
    image_bars,
    image_noise,
    images,
    large,
    memorization,
    networks,
    overview,
    problem_pages,
    readme,
    redesign,
    reliability,
    replicas,
    smooth_images,
    stopping,
    weights,
    zoo,
)
from benchmarks.paper import report as paper

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "benchmarks/NOTEBOOK.md", "docs/**/*.md")
DOCUMENTS = tuple(sorted(path for pattern in PAGES for path in ROOT.glob(pattern)))
"""Every hand-written document; those without tables are left as they are."""

TABLES: dict[str, Callable[[], str]] = {
    "overview": overview.methods,
    "overview_problems": overview.problems,
    "readme_output": readme.output,
    "which_one": choices.which_one,
    "learning_rates": choices.learning_rates,
    "budgets": choices.budgets,
    "command_line": command_pages.commands,
    "problems": problem_pages.overview,
    "problem_details": problem_pages.details,
    "convection_grid": convection.grid,
    "convection_tuned": convection.tuned,
    "convection_held": convection.held,
    "convection_stops": stopping.convection,
    "gate_alone": convection.gate_alone,
    "image_bars": image_bars.table,
    "image_noise": image_noise.table,
    "image_photons": image_noise.photons,
    "image_thresholds": image_noise.thresholds,
    "smooth_images": smooth_images.table,
    "smooth_images_large": smooth_images.gains,
    "image_cells": images.cells,
    "image_rates": images.rates,
    "image_sigma": images.sigmas,
    "image_gates": images.gates,
    "heat_inverse": heat.table,
    "costs": cost.table,
    "step_costs": cost.step_table,
    "pass_costs": cost.pass_table,
    "equal_time_overall": equal_time.overall,
    "equal_time_problems": equal_time.problems,
    "equal_time_costs": equal_time.costs,
    "gauss_newton_zoo": gauss_newton.table,
    "gauss_newton_variants": gauss_newton.variants,
    "gauss_newton_rivals": gauss_newton.second_order,
    "gauss_newton_hold": gauss_newton.hold,
    "gauss_newton_longer": gauss_newton.longer,
    "gauss_newton_size": gauss_newton_size.table,
    "gauss_newton_goals": gauss_newton_goals.table,
    "gauss_newton_ideas": gauss_newton_goals.ideas,
    "weights": weights.table,
    "coverage_coefficients": coverage.coefficients,
    "coverage_methods": coverage.methods,
    "coverage_fields": coverage.fields,
    "coverage_agreement": coverage.agreement,
    "curves": curves.table,
    "replica_floor": replicas.table,
    "redesign": redesign.table,
    "reliability": reliability.table,
    "fields_scattered": fields.scattered,
    "fields_seconds": fields.seconds,
    "fields_tried": fields.tried,
    "fields_thresholds": fields.thresholds,
    "fields_tried_indirect": fields.tried_indirect,
    "fields_indirect": fields.indirect,
    "fit_image_cells": fit_images.cells,
    "fit_sdf_cells": fit_sdf.table,
    "fit_sdf_cooldown": fit_sdf.cooldowns,
    "fit_sdf_small": fit_sdf.small,
    "fit_image_gaps": fit_images.gaps,
    "fit_image_differences": fit_images.differences,
    "fit_image_costs": fit_images.cost_table,
    "image_networks": networks.table,
    "large": large.table,
    "memorization_shares": memorization.shares,
    "memorization_stops": memorization.stops,
    "memorization_fresh": memorization.fresh_batches,
    "zoo_progress": zoo.progress,
    "reaction_rates": zoo.reaction_rates,
    "burgers_errors": zoo.burgers_errors,
    "viscosities": zoo.viscosities,
    "zoo_overall": zoo.overall,
    "zoo_one_rate": zoo.one_rate,
    "zoo_cells": zoo.cells,
    "zoo_outliers": zoo.outliers,
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


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit("\n".join(f"{path} is stale: run this without --check" for path in stale()) or 0)
    zoo.draw()
    for path in stale():
        path.write_text(render(path.read_text()))
