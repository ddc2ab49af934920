"""The paper's experiments, a few steps of each."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.harness import append_missing, read
from benchmarks.paper import arithmetic, grokking, grokking_report, phenomena, pinn, pixels, report

ADAMW = grokking.division("AdamW", 1.0, steps=4)


@pytest.fixture
def _few_looks(monkeypatch) -> None:
    for name, value in (("EVERY", 2), ("SUBSET", 50), ("SAVE_EVERY", 3)):
        monkeypatch.setattr(grokking, name, value)


def test_grokking_table_is_the_whole_division_table() -> None:
    a, b, quotient = arithmetic.quotients()
    assert len({(int(x), int(y)) for x, y in zip(a, b, strict=True)}) == 97 * 96
    assert int(b.min()) == 1
    assert torch.equal(quotient * b % 97, a)


def test_grokking_split_is_a_quarter_and_no_pair_is_in_both() -> None:
    training = grokking.Training(ADAMW)
    assert training.training.shape == (3, 2328)
    both = torch.cat([training.training, training.held_out], 1)
    assert len(set(map(tuple, both.T.tolist()))) == both.shape[1] == 97 * 96
    other = grokking.Training(replace(ADAMW, seed=1))
    assert not torch.equal(other.training, training.training)


def test_grokking_beginnings_computed_once_change_nothing() -> None:
    torch.manual_seed(0)
    net = arithmetic.Transformer()
    a, b = torch.randint(97, (30,)), torch.randint(1, 97, (30,))
    divided, equals = torch.full((30,), 97), torch.full((30,), 98)
    x = net.embed(torch.stack([a, divided, b, equals], 1)) + net.position
    plain = net.head(net.second(net.first(x))[:, -1])
    torch.testing.assert_close(net(a, b), plain, atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(4.2e5, rel=0.01)


def test_grokking_network_sees_no_later_token() -> None:
    torch.manual_seed(0)
    block = arithmetic.Block()
    x = torch.randn(2, 4, arithmetic.WIDTH)
    changed = x.clone()
    changed[:, 3] += 1
    torch.testing.assert_close(block(x)[:, :3], block(changed)[:, :3])
    assert not torch.allclose(block(x)[:, 3], block(changed)[:, 3])


def test_grokking_finite_threshold_is_that_of_the_batches() -> None:
    method = "soft, finite alpha"
    (group,) = grokking.Training(replace(ADAMW, method=method)).optimizer.param_groups
    assert (group["alpha"], group["batch_size"], group["data_size"]) == ("finite", 512, 2328)
    assert group["betas"] == (0.9, 0.98) and group["weight_decay"] == 1.0


@pytest.mark.usefixtures("_few_looks")
@pytest.mark.parametrize("method", list(grokking.METHODS)[:2])
def test_grokking_goes_on_with_the_bits_of_an_uninterrupted_run(method, tmp_path) -> None:
    run = replace(ADAMW, method=method, steps=6)
    whole = grokking.train(run, tmp_path / "whole")
    grokking.train(replace(run, steps=3), tmp_path / "parts")
    parts = grokking.train(run, tmp_path / "parts")
    again = grokking.train(run, tmp_path / "whole")  # from a checkpoint at its end
    timing = "cpu_milliseconds"
    for row in (whole, parts, again):
        assert row.pop(timing) > 0
    assert whole == parts == again
    assert [step for step, *_ in json.loads(whole["curve"])] == [2, 4, 6]
    assert whole["steps_taken"] == 6 and whole["steps_to_goal"] == ""


@pytest.mark.usefixtures("_few_looks")
def test_grokking_stops_soon_after_the_goal(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(grokking, "GOAL", 0.0)
    monkeypatch.setattr(grokking, "MARGIN", 2)
    row = grokking.train(replace(ADAMW, steps=100), tmp_path)
    assert (row["steps_to_fit"], row["steps_to_goal"], row["steps_taken"]) == (2, 2, 4)


@pytest.mark.usefixtures("_few_looks")
def test_grokking_does_only_what_is_missing(tmp_path, monkeypatch) -> None:
    path = tmp_path / "grokking.csv"
    monkeypatch.setattr(grokking, "CHECKPOINTS", tmp_path)
    for steps in (2, 2, 4):
        runs = [replace(ADAMW, steps=steps)]
        append_missing(path, runs, grokking.KEYS, grokking.train, jobs=1)
    assert [row["steps_taken"] for row in read(path)] == ["2", "4"]
    assert len(list(tmp_path.glob("*.pt"))) == 1  # and no checkpoint among those of real runs


def finished(curve: list[list[float]], goal: str = "", **changes: object) -> dict[str, str]:
    """A row of a run with these looks at it."""
    run = grokking.division("AdamW", 1.0)
    row = {**vars(run), "steps_to_fit": "", "steps_to_goal": goal, "steps_taken": run.steps}
    row |= {"held_out_accuracy": curve[-1][2], "cpu_milliseconds": 1.0}
    return {name: str(value) for name, value in {**row, **changes}.items()} | {
        "curve": json.dumps(curve)
    }


def test_grokking_outcomes() -> None:
    memorized, lost = [50, 1.0, 0.01, 9.0, 1.0], [100, 0.3, 0.01, 8.0, 1.0]
    cases = {
        "memorizes": finished([memorized]),
        "loses the table": finished([memorized, *[lost] * 5]),
        "learns nothing": finished([lost]),
        "on the way": finished([[50, 1.0, 0.4, 9.0, 1.0]]),
        "generalizes": finished([[50, 1.0, 0.96, 9.0, 1.0]], goal="50"),
    }
    for name, row in cases.items():
        assert grokking_report.outcome(row) == name


def test_grokking_tables_take_the_longest_run_of_every_seed(monkeypatch) -> None:
    short = finished([[50, 1.0, 0.2, 9.0, 1.0]], steps=100, steps_taken=100)
    long = finished([[50, 1.0, 0.97, 7.0, 1.0]], goal="4000")
    other = finished([[50, 1.0, 0.97, 7.0, 1.0]], goal="6000", seed=1)
    gate = finished([[50, 0.3, 0.01, 5.0, 0.1]], method="snr")
    monkeypatch.setattr(grokking_report, "read", lambda _: [long, short, other, gate])
    _, _, adamw, snr = grokking_report.division().split("\n")
    expected = "AdamW | 0.001 | 1 | 2 | not in 10000 | 5000 | generalizes | 97 % | 7 | 1.000"
    assert adamw == f"| {expected} |"
    assert "learns nothing" in snr
    assert grokking_report.claim() == (
        "division: AdamW, best of 1 settings, 5000 steps (seeds: 2), the rule, best of 1, "
        "not in 10000 (snr; seeds: 1)"
    )


def test_grokking_plans_name_every_method_and_no_run_twice() -> None:
    plans = grokking.plans()
    for plan in plans.values():
        assert len(set(plan)) == len(plan)
    assert {run.method for plan in plans.values() for run in plan} == set(grokking.METHODS)


def test_grokking_without_such_a_plan_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="no plan named adition: take of addition, "):
        grokking.main(1, ["adition"])


def test_grokking_phase_diagram_shows_methods_that_have_all_of_it(monkeypatch) -> None:
    rows = [
        finished([[50, 1.0, 0.96, 9.0, 1.0]], goal=str(round(100 / lr)), method=method, seed=seed)
        | {"task": grokking.ADDITION, "fraction": "0.4", "lr": str(lr), "weight_decay": str(decay)}
        for method in ("AdamW", "snr")
        for seed in range(2)
        for lr, decay in grokking.GRID[: 16 if method == "AdamW" else 15]
    ]
    rows[0] |= finished([[50, 1.0, 0.01, 9.0, 1.0]], method="AdamW") | {
        name: rows[0][name] for name in ("task", "fraction", "lr", "weight_decay")
    }
    for module in (grokking, grokking_report):
        monkeypatch.setattr(module, "read", lambda _: rows)
    assert grokking.fastest(["AdamW", "snr"])["AdamW"] == (3e-2, 0.1)
    best = [run for run in grokking.plans()["addition best"] if run.method == "AdamW"]
    assert [(r.lr, r.weight_decay, r.seed) for r in best] == [(3e-2, 0.1, 1), (3e-2, 0.1, 2)]
    (line,) = grokking_report.tuned().split("\n")[2:]
    assert line == (
        "| AdamW | 15 of 16 | 0.03 | 0.1 | 2 | 3333 | 3.3 | **3333** (2 of 2) | "
        "1.00 (1.00 to 1.00), 15 |"
    )
    (panel,) = [ax for ax in grokking_report.phases().axes if ax.get_visible()]
    words = [text.get_text() for text in panel.texts]
    assert len(words) == 16 and words.count("m") == 1 and words.count("3333") == 4


def test_grokking_gated_decay_shrinks_an_entry_by_its_own_gate() -> None:
    """With a gate that stays shut nothing decays; with AdamW's, everything does."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = grokking.GatedDecay([weight], weight_decay=1.0, lr=0.1, gate="hard", alpha=1.0)
    signal = torch.tensor([1.0, 1.0, 0.0, 0.0])
    for step in range(40):  # two entries of steady gradients, two of signs that alternate
        weight.grad = signal + (1 - signal) * (-1) ** step
        before = weight.detach().clone()
        optimizer.step()
    after = weight.detach()
    torch.testing.assert_close(after[:2], (before[:2] - 0.1) * (1 - 0.1), atol=1e-5, rtol=0)
    assert torch.equal(after[2:], before[2:])


def test_grokking_even_steps_are_as_long_as_the_gates_are_open() -> None:
    """Two entries of a tensor with an open gate and two with a shut one: twice the step."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = grokking.EvenSteps([weight], weight_decay=1.0, lr=0.1, gate="hard", alpha=1.0)
    signal = torch.tensor([1.0, 1.0, 0.0, 0.0])
    for step in range(40):
        weight.grad = signal + (1 - signal) * (-1) ** step
        before = weight.detach().clone()
        optimizer.step()
    after, decayed = weight.detach(), before * (1 - 0.1)
    torch.testing.assert_close(after[:2], decayed[:2] - 2 * 0.1, atol=1e-5, rtol=0)
    torch.testing.assert_close(after[2:], decayed[2:], atol=0, rtol=0)


def test_pinn_minibatches_rows_and_table(tmp_path, monkeypatch) -> None:
    path = tmp_path / "pinn.csv"
    monkeypatch.setattr(pinn, "PATH", path)
    monkeypatch.setattr(pinn, "EVERY", 2)
    runs = [pinn.Run(method, 3e-3, 0, steps=4) for method in pinn.METHODS]
    append_missing(path, runs, pinn.KEYS, pinn.train, jobs=1)
    rows = read(path)
    assert {**rows[0], "milliseconds": ""} == {
        name: str(value) for name, value in {**pinn.train(runs[0]), "milliseconds": ""}.items()
    }
    assert pinn.table().count("\n") == 1 + len(pinn.METHODS)
    assert pinn.best_rate(rows, "AdamW") == "0.003"


def test_pixels_rows_and_table(tmp_path, monkeypatch) -> None:
    path = tmp_path / "pixels.csv"
    monkeypatch.setattr(pixels, "PATH", path)
    for name, value in {"EVERY": 2, "STEPS": 4, "LONG": 6}.items():
        monkeypatch.setattr(pixels, name, value)
    runs = [pixels.Run("camera", method, 1e-3, steps=4) for method in pixels.METHODS]
    long = [pixels.Run("camera", m, lr, steps=6) for m, lr in pixels.LONG_RUNS.items()]
    append_missing(path, runs, pixels.KEYS, pixels.fit, jobs=1)
    assert [row["best_step"] in ("2", "4") for row in read(path)] == [True] * len(runs)
    assert pixels.table().count("\n") == 1  # not on all images
    monkeypatch.setattr(pixels, "CORNERS", {"camera": (96, 224)})
    assert pixels.table().count("\n") == 1 + len(runs)
    assert pixels.long_table().count("\n") == 1  # none of the longer runs yet
    append_missing(path, long, pixels.KEYS, pixels.fit, jobs=1)
    assert pixels.table().count("\n") == 1 + len(runs)
    assert pixels.long_table().count("\n") == 1 + 1  # of Adam alone: the others' rate is another


def test_phenomena_end_at_least_squares() -> None:
    """Fewer features than labels: the channel is their span, and the fit the projection."""
    problem = phenomena.double_descent(width=5, seed=0)
    problem.moments = (2000,)
    (row,) = phenomena.follow(problem)
    with torch.no_grad():
        features, tests = (problem.net[:2](x).double() for x in (problem.x, problem.test_x))
    u, e = problem.u.double(), problem.e.double()
    basis = torch.linalg.qr(features).Q
    fit = tests @ torch.linalg.lstsq(features, u + e).solution
    inside = basis @ (basis.T @ e)
    assert row["channel"] == 5
    expected = {
        "risk": (fit - problem.test_u).square().mean(),
        "noise_channel": inside.square().sum() / e.square().sum(),
        "memorized": inside.square().sum() / e.square().sum(),
        "risk_from_noise": (tests @ torch.linalg.pinv(features) @ e).square().mean(),
        "noise_channel_moved": (tests @ torch.linalg.pinv(features) @ e).square().mean(),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value), rel=2e-3), name
    assert row["noise_reservoir_moved"] < 1e-6


def test_phenomena_cells_hold_all_the_energy() -> None:
    problem = phenomena.spectral_bias(width=20, seed=0)
    problem.moments = (0, 40)
    before, after = phenomena.follow(problem)
    for part in ("signal", "noise"):
        assert after[f"{part}_channel"] + after[f"{part}_reservoir"] == pytest.approx(1, abs=1e-3)
    assert before["memorized"] == 0 and 0 < after["memorized"] < 1
    assert before["risk"] == before["risk_from_signal"] > after["risk"]
    assert len(after["coefficients"]) == len(phenomena.FREQUENCIES)
    assert (
        after["risk"] ** 0.5
        <= after["risk_from_signal"] ** 0.5 + after["risk_from_noise"] ** 0.5 + 0.01
    )


def test_phenomena_rows_repeat_and_make_tables_and_figures(tmp_path, monkeypatch) -> None:
    few = {"benign overfitting": (40, 20), "double descent": (5, 10), "spectral bias": (8,)}

    def quick(name):
        def build(width: int, seed: int) -> phenomena.Problem:
            problem = original[name](width, seed)
            problem.moments = (20, 40)
            return problem

        return build

    original = dict(phenomena.PROBLEMS)
    path = tmp_path / "phenomena.csv"
    monkeypatch.setattr(phenomena, "PATH", path)
    monkeypatch.setattr(phenomena, "WIDTHS", few)
    monkeypatch.setattr(phenomena, "SEEDS", range(1))
    monkeypatch.setattr(phenomena, "PROBLEMS", {name: quick(name) for name in original})
    with pytest.raises(ValueError, match=r"spectral bias.*benchmarks\.paper\.phenomena"):
        phenomena.medians("spectral bias", 8)
    for _ in range(2):
        append_missing(path, phenomena.runs(), phenomena.KEYS, phenomena.train, jobs=1)
    rows = read(path)
    assert len(rows) == 5
    assert rows[-1] == {k: str(v) for k, v in phenomena.train(phenomena.runs()[-1]).items()}
    phenomena.figures(tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert report.double_descent().count("\n") == 1 + len(few["double descent"])
    assert "| 20 |" in report.spectral_bias()
