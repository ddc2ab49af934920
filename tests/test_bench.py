"""The benchmark runner: its file, its rows, its rivals, its tables."""

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import parallel_config
from sciml_snr.problems import get
from typer.testing import CliRunner

from sciml_snr.bench import (
    KEYS,
    Job,
    append_missing,
    missing,
    read,
    read_plan,
    rows,
    run_job,
    smoothing,
    tables,
)
from sciml_snr.bench.plan import VARIANTS
from sciml_snr.bench.rivals import MSVAG, RIVALS
from sciml_snr.bench.stopping import HeldOut, check_sigma_known, conditions_of, misfit
from sciml_snr.bench.training import COLUMNS, Course
from sciml_snr.cli import app
from sciml_snr.gate import BESIDE_EXACT, STREAM
from sciml_snr.runs.folder import lock
from sciml_snr.runs.options import ProblemConfig
from sciml_snr.runs.run import compile_model

TOP = "seeds = [0, 1]\nlrs = [1e-3, 3e-3]\niterations = 6\nwidth = 4\n"
PROBLEMS = "[problems.poisson]\n"
METHODS = "[methods.adam]\n"


def plan_of(tmp_path: Path, text: str):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return read_plan(path)


def job(variant: str = "", optimizer: str = "adam", options: str = "", **changes) -> Job:
    """A short run of the quickest problem."""
    plain = Job(
        problem="p",
        method="m",
        lr=1e-2,
        seed=0,
        iterations=20,
        width=4,
        setting='{"problem": "poisson"}',
        optimizer=optimizer,
        options=options,
        variant=variant,
    )
    return replace(plain, **changes)


# The file.


def test_a_plan_is_expanded_seed_by_seed_and_method_by_method(tmp_path) -> None:
    plan = plan_of(
        tmp_path,
        TOP
        + """
        [problems.poisson]
        [problems.loud]
        problem = "convection"
        iterations = 9
        options = { noise = 2.0, points = 30 }
        [methods.adam]
        [methods.gated]
        optimizer = "snr_adam"
        lrs = [1e-2]
        options = { gate = "hard", floor = "stream" }
        """,
    )
    jobs = list(plan.jobs())
    one_seed = [
        ("adam", "poisson", 1e-3),
        ("adam", "poisson", 3e-3),
        ("adam", "loud", 1e-3),
        ("adam", "loud", 3e-3),
        ("gated", "poisson", 1e-2),
        ("gated", "loud", 1e-2),
    ]
    expected = [(seed, *rest) for seed in (0, 1) for rest in one_seed]
    assert [(j.seed, j.method, j.problem, j.lr) for j in jobs] == expected
    loud = next(j for j in jobs if (j.problem, j.method) == ("loud", "gated"))
    assert (loud.iterations, loud.width, loud.optimizer) == (9, 4, "snr_adam")
    assert json.loads(loud.options) == {"gate": "hard", "floor": "stream"}
    problem = loud.build()
    assert (problem.name, len(problem.observations)) == ("convection", 30)
    assert problem.sigma().max() == 2.0
    assert {j.options for j in jobs if j.method == "adam"} == {""}


def test_rates_are_tried_on_the_tuning_seeds_and_the_others_have_the_best(tmp_path) -> None:
    text = TOP.replace("seeds = [0, 1]", "seeds = [0, 1, 2, 3]\ntuning_seeds = [2, 1]")
    plan = plan_of(tmp_path, text + PROBLEMS + METHODS + "[methods.adamw]\n[methods.snr_adam]\n")
    errors = {  # final and best at the two rates and two seeds
        "adam": {1e-3: [(4.0, 1.0), (2.0, 1.0)], 3e-3: [(1.0, 1.0), (4.0, 4.0)]},
        "adamw": {1e-3: [(4.0, 1.0), (2.0, 1.0)], 3e-3: [(1.0, 1.0), (4.0, 4.0)]},
    }
    grid = list(plan.jobs())
    assert [(j.seed, j.method) for j in grid[::2]] == [
        (seed, method) for seed in (1, 2) for method in ("adam", "adamw", "snr_adam")
    ]
    rows = [
        {key: str(getattr(j, key)) for key in KEYS} | {"final_error": str(f), "best_error": str(b)}
        for j in grid
        if j.method in errors
        for f, b in [errors[j.method][j.lr][[2, 1].index(j.seed)]]
    ]
    later = [(j.seed, j.method, j.lr) for j in list(plan.jobs(rows))[len(grid) :]]
    # Plain Adam also at the rate of its best moment; snr_adam has not been tried yet.
    assert later == [
        (seed, *rest)
        for seed in (0, 3)
        for rest in (("adam", 1e-3), ("adam", 3e-3), ("adamw", 3e-3))
    ]
    assert len(list(plan.jobs(rows[:-1]))) == len(grid) + 4


def test_what_a_file_does_not_say_is_the_problems_own(tmp_path) -> None:
    plan = plan_of(tmp_path, "seeds = [3]\nlrs = [1e-3]\n" + PROBLEMS + METHODS)
    (only,) = plan.jobs()
    assert (only.iterations, only.width) == (get("poisson").iterations, 0)
    own = get("poisson")(seed=3)
    assert np.array_equal(only.build().observations.values, own.observations.values)


def test_impossible_combinations_are_skipped_with_a_reason(tmp_path) -> None:
    plan = plan_of(
        tmp_path,
        TOP
        + """
        [problems.poisson]
        [problems.exact]
        problem = "convection"
        options = { noise = 0.0 }
        [problems.few]
        problem = "convection"
        options = { points = 9 }
        [methods.adam]
        """
        + "".join(f'[methods.{v}]\noptimizer = "adam"\nvariant = "{v}"\n' for v in VARIANTS)
        + '[methods.label]\noptimizer = "snr_adam"\noptions = { floor = "label" }\n',
    )
    assert {pair: reason.split(",")[0] for pair, reason in plan.skipped.items()} == {
        ("poisson", "smoothed"): "2 kinds of values are measured",
        ("exact", "discrepancy"): "the measurements' error is unknown or 0",
        ("exact", "sure"): "the measurements' error is unknown or 0",
        ("exact", "label"): "the measurements' error is unknown or 0",
        ("few", "held_out"): "there are fewer than 10 measurements",
    }
    assert not any((j.problem, j.method) in plan.skipped for j in plan.jobs())


WRONG = {
    "seeds = [0": "is not TOML",
    "seed = [0]\n": "seed is not known here",
    "lrs = [1e-3]\n" + PROBLEMS + METHODS: "seeds must be a list of at least one number, got None",
    "seeds = []\nlrs = [1e-3]\n" + PROBLEMS + METHODS: "seeds must be a list",
    "seeds = [0.5]\n": "seeds has 0.5: not a whole number",
    "seeds = [-1]\n": "seeds has -1: not a number in range",
    "seeds = [true]\n": "seeds has True",
    "seeds = [0, 0]\n": "seeds has a number twice",
    "tuning_seeds = []\n" + TOP: "tuning_seeds must be a list of at least one number",
    "tuning_seeds = [0, 5]\n" + TOP: "tuning_seeds has 5, which is not among the seeds",
    TOP + METHODS: r"problems has no table: there must be at least one \[problems.NAME\]",
    TOP + PROBLEMS: r"methods has no table",
    TOP + "[problems]\npoisson = 3\n" + METHODS: "problems.poisson must be a table, got 3",
    TOP + "[problems.poison]\n" + METHODS: r"\[problems.poison\], problem is 'poison'.*poisson",
    TOP + PROBLEMS + "noise = 1\n" + METHODS: r"\[problems.poisson\], noise is not known here",
    TOP + PROBLEMS + "iterations = 0\n" + METHODS: r"\[problems.poisson\], iterations must be a",
    TOP + PROBLEMS + "width = 2.5\n" + METHODS: r"\[problems.poisson\], width must be a whole",
    TOP + PROBLEMS + "options = { nois = 1 }\n" + METHODS: r"options.nois is no option of poisson",
    TOP + PROBLEMS + "options = { seed = 1 }\n" + METHODS: "options.seed is no option of poisson",
    TOP + PROBLEMS + "options = { noise = -1 }\n" + METHODS: r"\[problems.poisson\], options.*-1",
    TOP + PROBLEMS + "options = 3\n" + METHODS: r"\[problems.poisson\], options must be a table",
    TOP + PROBLEMS + "[methods.adm]\n": r"\[methods.adm\], optimizer is 'adm'.*M-SVAG",
    TOP + PROBLEMS + METHODS + "lr = 1\n": r"\[methods.adam\], lr is not known.*lrs",
    TOP + PROBLEMS + METHODS + "lrs = []\n": r"\[methods.adam\], lrs must be a list",
    TOP + PROBLEMS + METHODS + "lrs = [1e-3, -1e-3]\n": r"\[methods.adam\], lrs has -0.001: a le",
    TOP + PROBLEMS + METHODS + 'lrs = ["x"]\n': r"\[methods.adam\], lrs has 'x': not a number",
    TOP + PROBLEMS + METHODS + "options = { z = 2 }\n": r"\[methods.adam\], options are those of",
    TOP + PROBLEMS + METHODS + 'variant = "stop"\n': r"\[methods.adam\], variant is 'stop'",
    TOP + PROBLEMS + '[methods.SOAP]\nvariant = "sure"\n': r"\[methods.SOAP\], variant goes with",
    TOP + PROBLEMS + '[methods.adamw]\nvariant = "lbfgs"\n': r"variant is \"lbfgs\", which goes",
    TOP + PROBLEMS + "[methods.snr_adam]\noptions = { zz = 2 }\n": r"\[methods.snr_adam\], opt.*zz",
    TOP + PROBLEMS + "[methods.snr_adam]\noptions = { z = -2 }\n": r"\[methods.snr_adam\], opt.*-2",
    "seeds = [0]\nlrs = [0]\n" + PROBLEMS + METHODS: "plan.toml: lrs has 0: a learning rate is",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_with_a_file_is_named(tmp_path, text: str) -> None:
    with pytest.raises(ValueError, match=WRONG[text]) as error:
        plan_of(tmp_path, text)
    assert str(tmp_path / "plan.toml") in str(error.value)


def test_a_missing_file_and_a_missing_package_are_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        read_plan(tmp_path / "nowhere.toml")
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match=r'\[methods.SOAP\].*the extra "bench"'):
        plan_of(tmp_path, TOP + PROBLEMS + "[methods.SOAP]\n")
    plan_of(tmp_path, TOP + PROBLEMS + '[methods."M-SVAG"]\n')  # needs nothing


def test_the_zoo_compares_what_it_promises() -> None:
    plan = read_plan(Path(__file__).parents[1] / "benchmarks" / "zoo.toml")
    assert len(plan.cases) >= 10 and len(plan.seeds) >= 5
    used = list(plan.methods.values())
    assert {one.optimizer for one in used} >= {"adam", "adamw", "snr_adam", "snr_soap", *RIVALS}
    assert {one.variant for one in used} == {"", *VARIANTS}
    assert all(len(one.lrs) >= 4 for one in used)
    assert plan.methods["snr_adam, own coordinates"].options == {"coordinates": "own"}
    assert not plan.methods["snr_soap"].options
    gates = {one.options["gate"] for one in used if one.options.get("floor") == "stream"}
    assert gates == {"soft", "hard", "snr"}


# The rows.


def test_only_what_is_missing_is_run_and_an_interruption_leaves_whole_rows(tmp_path) -> None:
    jobs = [job(seed=seed) for seed in range(5)]
    path, seen = tmp_path / "new" / "rows.csv", []

    def run(one: Job, last: int) -> dict:
        if one.seed == last:
            raise KeyboardInterrupt
        seen.append(one.seed)
        return {name: getattr(one, name) for name in KEYS} | {"final_error": 0.5}

    with pytest.raises(KeyboardInterrupt):
        append_missing(path, jobs, KEYS, lambda one: run(one, 3), jobs=1)
    assert [row["seed"] for row in read(path)] == ["0", "1", "2"]
    assert [one.seed for one in missing(path, jobs, KEYS)] == [3, 4]
    assert [one.seed for one in missing(path, [*jobs, *jobs], KEYS)] == [3, 4]
    append_missing(path, jobs, KEYS, lambda one: run(one, -1), jobs=1)
    append_missing(path, [*jobs, job(seed=9, lr=0.5)], KEYS, lambda one: run(one, -1), jobs=1)
    assert seen == [0, 1, 2, 3, 4, 9]
    assert len(path.read_text().splitlines()) == 7


def test_a_torn_last_row_is_made_anew(tmp_path) -> None:
    """As a killed process or a full disk leaves it."""
    path = tmp_path / "rows.csv"

    def run(one: Job) -> dict:
        return {name: getattr(one, name) for name in KEYS} | {"final_error": 0.5}

    jobs = [job(seed=seed) for seed in range(3)]
    append_missing(path, jobs, KEYS, run, jobs=1)
    whole = path.read_bytes()
    for cut in (3, len(whole.splitlines()[-1]) - 1):
        path.write_bytes(whole[:-cut])
        assert len(read(path)) == 2 and missing(path, jobs, KEYS) == jobs[2:]
        append_missing(path, jobs, KEYS, run, jobs=1)
        assert path.read_bytes() == whole
    path.write_bytes(whole + b"1,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv: row 4 below the header has another number"):
        append_missing(path, jobs, KEYS, run, jobs=1)


def test_a_results_file_in_use_is_refused(tmp_path) -> None:
    path = tmp_path / "rows.csv"
    with lock(tmp_path / ".rows.csv.lock", str(path)):  # noqa: SIM117
        with pytest.raises(BlockingIOError, match=r"rows\.csv is in use by process"):
            append_missing(path, [job()], KEYS, run_job, jobs=1)
    assert not path.exists()


def test_a_file_of_something_else_is_refused(tmp_path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("problem,lr\npoisson,0.1\n")
    with pytest.raises(ValueError, match=r"rows.csv exists and has no column 'method'"):
        append_missing(path, [job()], KEYS, run_job, jobs=1)
    assert path.read_text() == "problem,lr\npoisson,0.1\n"


def test_results_that_no_table_can_be_made_of_are_refused(tmp_path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("seed,error\n0,\n1,0.5\n2,1true\n")
    with pytest.raises(ValueError, match="row 3 below the header has '1true' for error"):
        rows.check_file(path, ("seed",), ("error",))
    with pytest.raises(ValueError, match="has no column 'seconds'"):
        rows.check_file(path, ("seed",), ("error", "seconds"))
    assert {"final_error", "cpu_seconds"} < set(tables.COLUMNS) < run_job(job()).keys()


@pytest.mark.parametrize("backend", ["ray", "dask", "slurm"])
def test_a_backend_that_is_not_there_is_named(tmp_path, monkeypatch, backend: str) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "dask", None)
    expected = "There is no backend 'slurm'" if backend == "slurm" else 'the extra "cluster"'
    with pytest.raises(ValueError, match=expected):
        append_missing(tmp_path / "rows.csv", [job()], KEYS, run_job, backend=backend)


def test_a_backend_that_gives_nothing_early_is_called_for_some_runs_at_a_time() -> None:
    done, seen = [], []

    def run(one: Job) -> dict:
        seen.append(len(done))
        return {"seed": one.seed}

    with parallel_config("sequential"):
        for row in rows._run(run, [job(seed=seed) for seed in range(6)], "ray"):
            done.append(row["seed"])
    assert done == list(range(6))
    assert seen == [0, 0, 0, 0, 4, 4]  # the first four rows are out before the others are made


def test_the_command_runs_a_file_and_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = TOP + PROBLEMS + METHODS + '[methods.gp]\noptimizer = "adam"\nvariant = "smoothed"\n'
    Path("plan.toml").write_text(text)
    call = ["bench", "plan.toml", "--out", "rows.csv", "--jobs", "1"]
    first = CliRunner().invoke(app, call)
    assert first.exit_code == 0, first.output
    assert "4 runs, of which 0 are in rows.csv already" in first.output
    assert "Skipped: gp on poisson, because 2 kinds of values" in first.output + first.stderr
    before = Path("rows.csv").read_bytes()
    assert len(read(Path("rows.csv"))) == 4
    second = CliRunner().invoke(app, call)
    assert "4 runs, of which 4 are in rows.csv already" in second.output
    assert Path("rows.csv").read_bytes() == before
    Path("plan.toml").write_text("tuning_seeds = [1]\n" + text)
    tuned = CliRunner().invoke(app, ["bench", "plan.toml", "--out", "tuned.csv", "--jobs", "1"])
    assert "2 runs to try the learning rates, of which 0 are in tuned.csv" in tuned.output
    assert len(read(Path("tuned.csv"))) in (3, 4)  # and seed 0, at the best rate or two
    assert {row["seed"] for row in read(Path("tuned.csv"))} == {"0", "1"}
    Path("plan.toml").write_text(text.replace("1e-3", "-1e-3"))
    third = CliRunner().invoke(app, call)
    assert third.exit_code == 1 and "plan.toml: lrs has -0.001" in third.output + third.stderr


def timeless(row: dict) -> dict:
    return {key: value for key, value in row.items() if "seconds" not in key}


@pytest.mark.parametrize("variant", ["", *VARIANTS])
def test_a_row_repeats(variant: str) -> None:
    setting = '{"problem": "convection", "points": 20}' if variant == "smoothed" else None
    one = job(variant, iterations=6, **({"setting": setting} if setting else {}))
    rows = [run_job(one), run_job(one)]
    assert timeless(rows[0]) == timeless(rows[1])
    assert list(rows[0])[: len(KEYS)] == list(KEYS)
    assert math.isfinite(rows[0]["final_error"]) and rows[0]["error"] == ""
    assert run_job(replace(one, seed=1))["final_error"] != rows[0]["final_error"]


def test_a_run_that_diverges_is_a_row_too() -> None:
    for optimizer in ("adam", "snr_adam"):
        row = run_job(job(optimizer=optimizer, lr=1e30))
        assert math.isnan(row["final_error"]) and row["error"]
        assert list(row) == list(run_job(job(iterations=1)))


def test_the_row_knows_the_gate_that_the_defaults_are() -> None:
    def gate(optimizer: str, options: str = "", problem: str = "poisson") -> dict:
        setting = json.dumps({"problem": problem})
        one = job("", optimizer, options, setting=setting, iterations=1)
        return json.loads(run_job(one)["gate"])

    assert run_job(job(iterations=1))["gate"] == ""
    assert gate("snr_adam", '{"floor": "stream"}') == asdict(STREAM)
    beside = asdict(BESIDE_EXACT["eigen"]) | {"basis": "both"}
    assert gate("snr_adam", problem="heat") == beside
    assert gate("snr_adam", problem="poisson") == beside  # a measured source holds noise back, too
    assert gate("snr_adam", '{"gate": "hard", "z": 3.0}') == beside | {"form": "hard", "z": 3.0}
    assert gate("snr_soap") == beside
    assert gate("snr_adam", '{"coordinates": "own"}') == asdict(BESIDE_EXACT["own"])
    assert gate("snr_adam", '{"gate": "none"}')["form"] == "none"


def test_the_gate_of_a_run_that_diverges_is_in_its_row() -> None:
    row = run_job(job(optimizer="snr_adam", lr=1e30))
    assert row["error"] and json.loads(row["gate"])["form"] == "stein"


@pytest.mark.parametrize(
    ("variant", "optimizer", "options", "each"),
    [
        ("", "adam", "", 1.0),
        ("held_out", "adam", "", 1.0),
        ("dropout", "adam", "", 1.0),
        ("resampled", "adam", "", 1.0),
        ("sure", "adam", "", 2.0),
        ("", "SOAP", "", 1.0),
        ("", "snr_adam", '{"floor": "stream"}', 1.0),
        # Two kinds of measurements: a draw and a gradient of each.
        ("", "snr_adam", "", 5.0),
        ("", "snr_soap", "", 5.0),
        ("", "snr_adam", '{"floor_every": 4}', 3.5),
    ],
)
def test_gradient_evaluations_are_counted(
    variant: str, optimizer: str, options: str, each: float
) -> None:
    course = Course(job(variant, optimizer, options))
    course.run()
    found = course.results("")._asdict()
    assert found["evaluations"] == 20 * each
    spent = [row for row in course.rows if row["evaluations"] <= 20]
    assert spent[-1]["iteration"] == 20 // each
    equal = course.chosen(spent)
    assert found["error_at_equal_evaluations"] == equal["relative_l2"]
    if not variant:
        assert equal is spent[-1] and found["final_error"] == course.rows[-1]["relative_l2"]


@pytest.mark.parametrize("optimizer", ["snr_adam", "snr_soap"])
def test_the_noisy_terms_gradient_beside_an_exact_equation_is_counted(optimizer: str) -> None:
    course = Course(job("", optimizer, setting='{"problem": "heat"}', iterations=5))
    course.run()
    assert course.results("").evaluations == 15


@pytest.mark.parametrize(("variant", "drawn"), [("", 1), ("resampled", 3)])
def test_points_of_the_equation_are_drawn_anew_every_ten_iterations(variant, drawn) -> None:
    course = Course(job(variant, setting='{"problem": "heat"}', iterations=25))
    seen: set[bytes] = set()
    data = course.problem.data()
    course.problem.data = lambda: data
    equation = data.pde
    data.pde = lambda x, u: (seen.add(data.train_x_all.tobytes()), equation(x, u))[1]
    course.run()
    assert len(seen) == drawn


def test_lbfgs_takes_over_for_what_is_left() -> None:
    course = Course(job("lbfgs", iterations=200))
    course.run()
    row = course.results("")._asdict()
    # A step of L-BFGS that has begun ends after at most two line searches.
    assert 160 < row["evaluations"] <= 260
    by_adam = next(r for r in course.rows if r["iteration"] == 160)
    assert by_adam["evaluations"] == 160 and course.rows[-1]["loss"] < by_adam["loss"]
    inside = [r for r in course.rows if r["evaluations"] <= 200]
    assert row["error_at_equal_evaluations"] == inside[-1]["relative_l2"]


# Rivals.


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_lowers_a_quadratic(name: str) -> None:
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(4, 3))
    scales = torch.linspace(0.1, 2.0, 12).reshape(4, 3)
    optimizer = RIVALS[name]([w], 0.02)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (scales * w.square()).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert torch.isfinite(w).all()
    assert losses[-1] < 0.2 * losses[0]


def test_msvag_is_the_papers_recursion() -> None:
    """Against a loop over entries and sums over all past gradients, in the paper's formulas."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(0.3, 1.0, (12, 5))
    gradients[:, 4] = 0.0
    w = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer, beta, lr = MSVAG([w], lr=0.1, beta=0.8), 0.8, 0.1
    expected = [0.0] * 5
    for t in range(1, 13):
        w.grad = torch.as_tensor(gradients[t - 1])
        optimizer.step()
        weights = [(1 - beta) * beta ** (t - i) / (1 - beta**t) for i in range(1, t + 1)]
        rho = sum(c**2 for c in weights)  # the variance of a mean with these weights
        for k in range(5):
            m = sum(c * g for c, g in zip(weights, gradients[:t, k], strict=True))
            v = sum(c * g**2 for c, g in zip(weights, gradients[:t, k], strict=True))
            s = (v - m**2) / (1 - rho) if t > 1 else 0.0
            if m != 0:
                expected[k] -= lr * m**2 / (m**2 + rho * s) * m
        assert w.detach().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    with pytest.raises(ValueError, match="beta must be in"):
        MSVAG([w], beta=1.0)


def test_a_smoothed_measurement_is_nearer_to_the_truth() -> None:
    rng = np.random.default_rng(1)
    x = np.hstack([rng.uniform(0, 6, (80, 1)), np.zeros((80, 1))])  # one coordinate does not vary
    clean = np.sin(x[:, :1])
    noisy = clean + 0.5 * rng.normal(size=clean.shape)
    smooth = smoothing.gaussian_process(x, noisy)
    assert smooth.shape == (80, 1)
    assert np.abs(smooth - clean).mean() < 0.4 * np.abs(noisy - clean).mean()


def test_smoothed_values_are_what_is_trained_on_and_not_what_is_scored() -> None:
    problem = get("convection")(points=30)
    values = problem.observations.values.copy()
    smoothing.smooth(problem, seed=0)
    (condition,) = [bc for bc in problem.model().data.bcs if hasattr(bc, "sigma")]
    expected = smoothing.gaussian_process(problem.observations.points.astype("f4"), values, 0)
    assert condition.values.numpy() == pytest.approx(expected, abs=0.05)
    assert np.abs(condition.values.numpy() - values).max() > 0.1
    assert np.array_equal(problem.observations.values, values)


def test_the_prediction_with_dropout_is_the_mean_of_fifty_passes() -> None:
    torch.manual_seed(0)
    plain = get("convection")().network()
    net = smoothing.remade(plain, 8, smoothing.DropoutFNN)
    assert [linear.out_features for linear in net.linears] == [8, 8, 8, 1]
    x = torch.rand(7, 2)
    net.train()
    assert not torch.equal(net(x), net(x))
    net.eval()
    state = torch.get_rng_state()
    mean = net(x)
    assert torch.equal(mean, net(x)) and torch.equal(state, torch.get_rng_state())
    torch.manual_seed(0)
    passes = torch.stack([net.one_pass(x) for _ in range(50)])
    assert passes.std(dim=0).min() > 0
    assert torch.allclose(mean, passes.mean(dim=0))


def test_a_network_of_another_width_keeps_its_transforms() -> None:
    net = get("elliptic")().network()
    other = smoothing.remade(net, 5)
    x = torch.rand(4, 1)
    assert other.linears[1].weight.shape == (5, 5)
    assert (other(x)[:, 1] > 0).all()  # the conductivity is an exponential
    assert smoothing.remade(net, 0) is net


# Stopping.


def test_one_measurement_in_ten_is_held_out_of_every_condition() -> None:
    problem = get("poisson")(points=20)
    before = [len(bc) for bc in conditions_of(problem)]
    rule = HeldOut(problem, 0, 5)
    assert before == [32, 20] and [len(bc) for bc in conditions_of(problem)] == [29, 18]
    assert [len(bc) for bc in rule.held] == [3, 2]
    model = compile_model(ProblemConfig("poisson", "adam", 1e-3, iterations=1), problem)
    for trained, held in zip(model.data.bcs, rule.held, strict=True):
        assert type(trained) is type(held)
        assert len(np.intersect1d(trained.points, held.points)) == 0
    rule.set_model(model)
    u, f = rule.held[1], rule.held[0]
    fits = model.predict(u.points), model.predict(f.points, operator=problem.operator)
    squares = [((fit - bc.values.numpy()) / 0.1) ** 2 for fit, bc in zip(fits, (u, f), strict=True)]
    assert rule.score() == pytest.approx(np.concatenate(squares).mean(), rel=1e-5)


def test_measurements_of_unknown_error_are_held_out_too(tmp_path) -> None:
    (tmp_path / "u.csv").write_text("x,u\n" + "".join(f"0.{i},0.{i}\n" for i in range(10, 30)))
    (tmp_path / "f.csv").write_text("x,f\n" + "".join(f"0.{i},0.{i}\n" for i in range(10, 40)))
    problem = get("poisson")(observations=tmp_path / "u.csv", source=tmp_path / "f.csv")
    rule = HeldOut(problem, 0, 5)
    assert [len(bc) for bc in conditions_of(problem)] == [27, 18]
    assert [len(bc) for bc in rule.held] == [3, 2]
    with pytest.raises(ValueError, match="error is unknown or 0"):
        check_sigma_known(conditions_of(problem))


def test_all_outputs_of_a_measurement_are_held_out_together() -> None:
    problem = get("lynx_hare")()
    rule = HeldOut(problem, 0, 5)
    hare, lynx = rule.held
    assert len(hare) == len(lynx) == 2 and np.array_equal(hare.points, lynx.points)
    assert problem.domain["year"] == (1900, 1920)  # what is scored stays as it was


def test_the_discrepancy_principle_stops_at_the_first_moment_of_the_noises_size() -> None:
    setting = '{"problem": "heat", "noise": 0.6}'
    loud = job("discrepancy", setting=setting, lr=3e-2, iterations=100, width=8)
    course, whole = Course(loud), Course(replace(loud, variant=""))
    course.run()
    values = []
    measure = whole._measure

    def measure_and_misfit() -> None:
        measure()
        values.append(misfit(whole.model, conditions_of(whole.problem)))

    whole._measure = measure_and_misfit
    whole.run()
    first = next((i for i, value in enumerate(values) if value <= 1), None)
    assert first is not None and 0 < first < 100  # else this would test nothing
    row = course.results("")._asdict()
    assert row["final_iteration"] == row["evaluations"] == first
    assert row["final_error"] == whole.rows[first]["relative_l2"]


# Tables.


def made_up() -> list[dict[str, str]]:
    """Two problems; Adam at two rates, ours, Adam held out; two seeds. Errors by hand."""
    finals = {
        ("a", "adam", 0.1): [(0.40, 0.20), (0.60, 0.30)],
        ("a", "adam", 0.2): [(0.30, 0.25), (0.50, 0.10)],
        ("a", "ours", 0.1): [(0.20, 0.20), (0.20, 0.15)],
        ("a", "held", 0.1): [(0.25, 0.25), (0.25, 0.25)],
        ("b", "adam", 0.1): [(1.00, 0.80), (1.00, 1.00)],
        ("b", "adam", 0.2): [(math.nan, 0.70), (math.nan, 0.90)],
        ("b", "ours", 0.1): [(1.02, 1.00), (1.02, 1.00)],
        ("b", "held", 0.1): [(2.00, 1.00), (2.00, 1.00)],
    }
    return [
        {
            "problem": problem,
            "method": method,
            "lr": str(lr),
            "seed": str(seed),
            "optimizer": "snr_adam" if method == "ours" else "adam",
            "options": "",
            "variant": "held_out" if method == "held" else "",
            "final_error": str(final),
            "best_error": str(best),
            "error_at_equal_evaluations": str(final),
            "cpu_seconds": "4.0" if method == "ours" else "2.0",
            "memorized": "0.05",
            "unknown_errors": json.dumps({"k": final, "r": 0.01} if problem == "b" else {}),
        }
        for (problem, method, lr), pairs in finals.items()
        for seed, (final, best) in enumerate(pairs)
    ]


def test_tables_are_what_one_computes_by_hand() -> None:
    rows = made_up()
    best = tables.tuned(rows)
    assert best["a"]["adam"].lr == 0.2 and best["b"]["adam"].lr == 0.1  # 0.2 diverged on b
    assert best["a"]["adam"].median("final_error") == pytest.approx(0.4)
    assert best["a"]["adam"].range("final_error") == "0.4 (0.3 to 0.5)"
    # Seed by seed the lowest over rates and moments: (0.20, 0.10) and (0.70, 0.90).
    assert tables.oracle(rows) == pytest.approx({"a": 0.15, "b": 0.80})
    ours, adam, held = tables.overall(rows)
    assert [one.method for one in (ours, adam, held)] == ["ours", "adam", "held"]
    assert ours.to_final == pytest.approx(math.sqrt(0.2 / 0.4 * 1.02 / 1.0))
    assert ours.to_oracle == pytest.approx(math.sqrt(0.2 / 0.15 * 1.02 / 0.8))
    assert ours.to_held_out == pytest.approx(math.sqrt(0.2 / 0.25 * 1.02 / 2.0))
    assert ours.worst == pytest.approx(1.02) and ours.seconds == pytest.approx(2.0)
    assert (ours.near_best, adam.near_best, held.near_best) == (2, 1, 0)
    assert adam.to_final == adam.equal == 1.0
    assert tables.profiles(rows)["ours"] == pytest.approx([1.0, 1.02])
    assert tables.profiles(rows)["adam"] == pytest.approx([1.0, 2.0])


def test_cells_of_a_table() -> None:
    lines = tables.problem_cells(made_up())
    assert [line[:2] for line in lines[:4]] == [
        ["a", "*Adam's oracle*"],
        ["a", "ours"],
        ["a", "held"],
        ["a", "adam"],
    ]
    assert lines[3][2:5] == ["0.2*", "2", "0.4 (0.3 to 0.5)"]
    assert all(len(line) == len(tables.CELLS) for line in lines)
    ours = next(line for line in lines if line[:2] == ["b", "ours"])
    assert ours[7:9] == ["k 102.0 % (largest of 2)", "5.0 %"]


def test_a_diverged_method_is_infinite_and_a_rate_with_fewer_seeds_does_not_count() -> None:
    rows = made_up()
    lost = [dict(row, final_error="nan") if row["method"] == "ours" else row for row in rows]
    assert tables.overall(lost)[-1].to_final == math.inf
    extra = dict(rows[0], lr="0.3", final_error="0.001")
    assert tables.tuned([*rows, extra])["a"]["adam"].lr == 0.2
    assert not tables.tuned([*rows, extra])["a"]["adam"].at_edge  # it was tried, on one seed
    with pytest.raises(ValueError, match="no row of a method with the optimizer"):
        tables.overall([row for row in rows if row["method"] == "ours"])


def test_figures_are_drawn(tmp_path) -> None:
    for path in tables.draw(made_up(), tmp_path / "figures"):
        assert 5_000 < path.stat().st_size < 100_000


def test_rows_of_other_settings_do_not_count(tmp_path) -> None:
    jobs = [job(seed=seed) for seed in (0, 1)]
    other = job(seed=0, iterations=99)
    rows = [{key: str(getattr(one, key)) for key in KEYS} for one in (jobs[1], other, jobs[0])]
    assert [row["seed"] for row in tables.of_plan(rows, jobs)] == ["0", "1"]


def test_seeds_that_not_all_methods_have_whole_are_not_compared() -> None:
    jobs = [job(method=m, lr=lr, seed=s) for s in (0, 1) for m in "abc" for lr in (1e-3, 1e-2)]
    rows = [{key: str(getattr(one, key)) for key in KEYS} for one in jobs]
    assert tables.comparable(rows, jobs) == rows
    # b has half of its rates at seed 1; c has half of them at seed 0 and nothing else
    kept = [r for r in rows if not (r["method"] == "b" and r["seed"] == "1" and r["lr"] == "0.01")]
    kept = [r for r in kept if r["method"] != "c" or (r["seed"], r["lr"]) == ("0", "0.001")]
    found = {(r["method"], r["lr"], r["seed"]) for r in tables.comparable(kept, jobs)}
    assert found == {(m, lr, "0") for m in "ab" for lr in ("0.001", "0.01")}


def test_a_file_without_one_of_the_columns_is_refused_before_any_run(tmp_path, monkeypatch) -> None:
    """With a last row that a killed process left half written, which stays as it is."""
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(
        "seeds = [0]\nlrs = [1e-3]\niterations = 1\nwidth = 4\n\n"
        "[problems.convection]\noptions = { points = 8 }\n\n[methods.adam]\n"
    )
    text = ",".join(name for name in COLUMNS if name != "gate") + "\nconvection,ad"
    Path("rows.csv").write_text(text)
    done = CliRunner().invoke(app, ["bench", "plan.toml", "--out", "rows.csv", "--jobs", "1"])
    assert done.exit_code == 1 and "has no column 'gate'" in " ".join(done.output.split())
    assert Path("rows.csv").read_text() == text
    assert "runs" not in done.output
