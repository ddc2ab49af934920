"""The paper's experiments, a few steps of each."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.harness import append_missing, read
from benchmarks.paper import grokking, phenomena, report

ADAMW = grokking.Run("AdamW", 1e-3, 1.0, seed=0, steps=4)


@pytest.fixture
def _few_looks(monkeypatch) -> None:
    for name, value in (("EVERY", 2), ("SUBSET", 50), ("SAVE_EVERY", 3), ("BATCH", 64)):
        monkeypatch.setattr(grokking, name, value)


def test_grokking_table_is_the_whole_division_table() -> None:
    a, b, quotient = grokking.table()
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
    net = grokking.Transformer()
    a, b = torch.randint(97, (30,)), torch.randint(1, 97, (30,))
    divided, equals = torch.full((30,), 97), torch.full((30,), 98)
    x = net.embed(torch.stack([a, divided, b, equals], 1)) + net.position
    plain = net.head(net.second(net.first(x))[:, -1])
    torch.testing.assert_close(net(a, b), plain, atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(4.2e5, rel=0.01)


def test_grokking_network_sees_no_later_token() -> None:
    torch.manual_seed(0)
    block = grokking.Block()
    x = torch.randn(2, 4, grokking.WIDTH)
    changed = x.clone()
    changed[:, 3] += 1
    torch.testing.assert_close(block(x)[:, :3], block(changed)[:, :3])
    assert not torch.allclose(block(x)[:, 3], block(changed)[:, 3])


def test_grokking_finite_threshold_is_that_of_the_batches() -> None:
    method = "SNRAdam, alpha = b / (n - b)"
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


def scanned(lr: float, goal: str, accuracy: float, **changes: object) -> dict[str, str]:
    row = {"method": "AdamW", "lr": lr, "weight_decay": 1.0, "seed": 0, "steps": grokking.SCAN}
    row |= {"steps_to_goal": goal, "held_out_accuracy": accuracy, "curve": "[[50, 1.0, 0.0]]"}
    row |= changes
    return {name: str(value) for name, value in row.items()}


def test_grokking_takes_the_fastest_cell_else_the_most_accurate() -> None:
    rows = [scanned(1e-3, "", 0.9, curve="[[50, 0.1, 0.9]]"), scanned(3e-3, "", 0.1)]
    assert grokking.best(rows, "AdamW") == (1e-3, 1.0)
    lost = scanned(1e-2, "", 0.03, curve="[[50, 1.0, 0.0], [100, 0.7, 0.0]]")
    assert grokking.best([lost, scanned(1e-3, "", 0.01)], "AdamW") == (1e-3, 1.0)
    rows += [scanned(1e-2, "4000", 0.95), scanned(1e-4, "10", 1.0, seed=1)]
    assert grokking.best(rows, "AdamW") == (1e-2, 1.0)
    assert grokking.best(rows, "other") is None
    longer = scanned(1e-2, "4000", 0.95, steps=grokking.FULL)
    assert grokking.rows_at([*rows, longer], "AdamW", (1e-2, 1.0)) == [longer]


def test_grokking_finals_are_those_that_no_longer_run_has_made(monkeypatch) -> None:
    rows = [scanned(1e-3, "", 0.9), scanned(1e-3, "", 0.9, seed=1, steps=2 * grokking.FULL)]
    monkeypatch.setattr(grokking, "read", lambda _: rows)
    assert grokking.finals() == [
        grokking.Run("AdamW", 1e-3, 1.0, seed, grokking.FULL) for seed in (0, 2)
    ]


def test_grokking_tries_as_many_cells_for_every_method() -> None:
    runs = grokking.scan()
    assert len(set(runs)) == len(runs)
    counts = {method: sum(run.method == method for run in runs) for method in grokking.METHODS}
    assert set(counts.values()) == {8}


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


def test_paper_tables_say_never_where_a_run_did_not_get_there(tmp_path, monkeypatch) -> None:
    path = tmp_path / "grokking.csv"
    rows = [
        scanned(1e-3, "400", 0.96, steps_taken=500),
        scanned(1e-3, "600", 0.96, seed=1, steps=grokking.FULL, steps_taken=700),
        scanned(3e-3, "", 0.2, method=list(grokking.METHODS)[1], steps_taken=grokking.SCAN),
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setattr(grokking, "PATH", path)
    _, _, adamw, ours = report.grokking_best().splitlines()
    assert adamw == "| AdamW | 1 | 0.001 | 1 | 2 | 500 (400 to 600) | 1.00 |"
    assert ours.endswith(f"| 1 | not within {grokking.SCAN} steps |  |")
