"""Runs: what they leave behind, interruption, resumption, comparison."""

import csv
import errno
import functools
import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import deepxde as dde
import numpy as np
import pytest
import torch

from sciml_snr import Gate, SNRAdam, SNRGaussNewton, set_SNR_options
from sciml_snr.deepxde import SNR_options
from sciml_snr.runs.comparison import compare
from sciml_snr.runs.folder import RunFolder, write_arrays, write_state
from sciml_snr.runs.run import ProblemConfig, Recorder, compile_model, memorization, solve
from sciml_snr.runs.summary import read_summary

CONVECTION = ProblemConfig("convection", iterations=60, points=32)
LYNX = ProblemConfig("lynx_hare", iterations=60)
POISSON = ProblemConfig("poisson", iterations=60)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]


def assert_same_end(one: Path, other: Path) -> None:
    a, b = checkpoint(one), checkpoint(other)
    assert a["iteration"] == b["iteration"]
    assert all(torch.equal(a["network"][k], b["network"][k]) for k in a["network"])
    assert all(torch.equal(a["unknowns"][k], b["unknowns"][k]) for k in a["unknowns"])
    timeless = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in rows(f)] for f in (one, other)
    ]
    assert timeless[0] == timeless[1]


class StopAt(dde.callbacks.Callback):
    """Sends this process a Ctrl-C after some iterations."""

    def __init__(self, iteration: int) -> None:
        super().__init__()
        self.left = iteration

    def on_epoch_end(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupt_after(monkeypatch):
    """Make training send itself a Ctrl-C after so many iterations, of all its parts together."""

    def install(iterations: int) -> None:
        train, stop = dde.Model.train, StopAt(iterations)

        def interrupted(self, *args, callbacks=(), **kwargs):
            return train(self, *args, callbacks=[*callbacks, stop], **kwargs)

        monkeypatch.setattr(dde.Model, "train", interrupted)

    return install


@pytest.mark.parametrize("config", [CONVECTION, LYNX], ids=lambda c: c.problem)
def test_run_folder(tmp_path, config: ProblemConfig) -> None:
    summary = solve(config, tmp_path / "run", progress=False)
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} == {
        *(".lock", "config.json", "metrics.csv", "checkpoint.pt"),
        *("prediction.npz", "summary.json", "figure.png"),
    }
    problem = config.build()
    saved = ProblemConfig(**RunFolder(folder, "problem").settings())
    assert saved == config.resolved()
    assert (summary.iterations, summary.interrupted) == (60, False)

    errors = [float(row["relative_l2"]) for row in rows(folder)]
    assert summary.final_error == errors[-1]
    assert summary.best_error == min(errors)
    assert int(float(rows(folder)[-1]["iteration"])) == 60
    assert summary.best_iteration == errors.index(min(errors))
    assert 0 <= summary.open_fraction <= 1
    assert (summary.memorized is None) == (problem.observations.clean is None)
    assert set(summary.unknowns) == set(summary.unknowns_reference) == set(problem.truth())

    with np.load(folder / "prediction.npz") as fields:
        error = np.linalg.norm(fields["fit"] - fields["reference"])
        assert error / np.linalg.norm(fields["reference"]) == pytest.approx(summary.final_error)
        assert fields["observed_values"].shape == fields["observed_fit"].shape
        for fit in ("fit", "observed_fit"):
            assert (fields[f"{fit}_low"] < fields[fit]).all()
            assert (fields[fit] < fields[f"{fit}_high"]).all()
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("config", [POISSON, LYNX], ids=lambda c: c.problem)
def test_unknowns_have_error_bars(tmp_path, config: ProblemConfig) -> None:
    summary = solve(config, tmp_path, progress=False)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary.unknowns_interval) == list(found["unknowns_standard_error"])
    assert set(found["unknowns_interval"]) == set(found["unknowns"])
    for name, (low, high) in found["unknowns_interval"].items():
        assert low < found["unknowns"][name] < high
        assert found["unknowns_standard_error"][name] > 0
    assert read_summary(tmp_path) == summary


def test_without_sigma_there_are_no_error_bars_and_the_run_says_so(tmp_path) -> None:
    data = tmp_path / "mine.csv"
    data.write_text("x,t,u\n1,0,0.8\n3,0.5,0.2\n")
    config = replace(CONVECTION, points=None, data=str(data))
    summary = solve(config, tmp_path / "run", progress=False)
    assert summary.unknowns_interval is None
    assert "error is unknown" in summary.error_bars_note
    with np.load(tmp_path / "run" / "prediction.npz") as fields:
        assert "fit_low" not in fields


def test_same_config_same_bits(tmp_path) -> None:
    for name in "ab":
        solve(CONVECTION, tmp_path / name, progress=False)
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("config", [CONVECTION, LYNX, POISSON], ids=lambda c: c.problem)
@pytest.mark.parametrize("optimizer", ["snr_adam", "snr_soap", "adamw"])
def test_interrupted_and_resumed_run_has_the_same_bits(
    tmp_path, interrupt_after, monkeypatch, config: ProblemConfig, optimizer: str
) -> None:
    config = ProblemConfig(config.problem, optimizer, iterations=60)
    monkeypatch.setattr("sciml_snr.runs.run.EVALUATIONS", 12)
    solve(config, tmp_path / "whole", progress=False)
    with monkeypatch.context():
        interrupt_after(33)
        summary = solve(config, tmp_path / "parts", progress=False)
    assert summary.interrupted
    assert summary.iterations == 34  # the iteration under way when the signal came is finished
    assert (tmp_path / "parts" / "figure.png").exists()

    monkeypatch.undo()
    monkeypatch.setattr("sciml_snr.runs.run.EVALUATIONS", 12)
    summary = solve(ProblemConfig(config.problem), tmp_path / "parts", resume=True, progress=False)
    assert not summary.interrupted
    assert summary.optimizer == optimizer
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("optimizer", ["snr_adam", "snr_soap"])
def test_a_run_resumed_between_draws_has_the_same_bits(
    tmp_path, interrupt_after, monkeypatch, optimizer: str
) -> None:
    """The floor is drawn in every third step; exact terms are looked for after 100."""
    options = {"floor_every": 3}
    config = replace(CONVECTION, optimizer=optimizer, iterations=110, snr_options=options)
    monkeypatch.setattr("sciml_snr.runs.run.EVALUATIONS", 12)
    solve(config, tmp_path / "whole", progress=False)
    interrupt_after(97)
    assert solve(config, tmp_path / "parts", progress=False).iterations == 98
    monkeypatch.undo()
    monkeypatch.setattr("sciml_snr.runs.run.EVALUATIONS", 12)
    solve(config, tmp_path / "parts", resume=True, progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_checkpoints_are_written_on_the_way(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Recorder, "checkpoint_seconds", 0.0)
    config = CONVECTION.resolved()
    problem = config.build()
    recorder = Recorder(config, problem, RunFolder(tmp_path, "problem"))
    recorder.train(compile_model(config, problem), progress=False)
    assert checkpoint(tmp_path)["iteration"] == 60


def test_a_finished_run_can_be_given_a_larger_budget(tmp_path) -> None:
    solve(CONVECTION, tmp_path / "run", progress=False)
    longer = ProblemConfig("convection", iterations=80)
    assert solve(longer, tmp_path / "run", resume=True, progress=False).iterations == 80
    assert json.loads((tmp_path / "run" / "config.json").read_text())["iterations"] == 80


def test_a_run_that_broke_off_can_be_resumed(tmp_path, monkeypatch) -> None:
    """Whenever it was: a checkpoint is there before the first iteration."""

    def killed(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(dde.Model, "train", killed)
        with pytest.raises(RuntimeError, match="killed"):
            solve(CONVECTION, tmp_path / "parts", progress=False)
    solve(CONVECTION, tmp_path / "parts", resume=True, progress=False)
    solve(CONVECTION, tmp_path / "whole", progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_an_existing_run_is_not_overwritten(tmp_path) -> None:
    solve(CONVECTION, tmp_path, progress=False)
    with pytest.raises(FileExistsError, match="already holds a run"):
        solve(CONVECTION, tmp_path, progress=False)


def test_nothing_to_resume(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        solve(CONVECTION, tmp_path, resume=True, progress=False)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (dict(optimizer="adam"), "optimizer = 'snr_soap'"),
        (dict(lr=1e-2), "lr = 0.002"),
        (dict(seed=4), "seed = 3"),
        (dict(data="mine.csv"), "data = its default"),
        (dict(snr_options={"betas": (0.9, 0.99)}), "snr_options = {'betas': \\[0.8, 0.9\\]}"),
    ],
    ids=str,
)
def test_a_run_is_not_resumed_as_another(tmp_path, other, what: str) -> None:
    """What is said again, or not said, is no contradiction."""
    said = dict(lr=2e-3, seed=3, snr_options={"betas": (0.8, 0.9)})
    config = ProblemConfig("convection", "snr_soap", iterations=3, **said)
    solve(config, tmp_path, progress=False)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match=f"has {what} and not .* Resume it with its own"):
        solve(replace(config, **other), tmp_path, resume=True, progress=False)
    assert (tmp_path / "config.json").read_text() == before
    for same in (config, ProblemConfig("convection"), replace(config, lr=None, iterations=4)):
        summary = solve(same, tmp_path, resume=True, progress=False)
    assert (summary.optimizer, summary.iterations) == ("snr_soap", 4)
    with pytest.raises(ValueError, match="has problem = 'convection'"):
        solve(ProblemConfig("heat"), tmp_path, resume=True, progress=False)


def test_own_data_reach_the_run(tmp_path) -> None:
    data = tmp_path / "own.csv"
    data.write_text("x,t,u\n1,0,1\n2,0.5,0.3\n")
    solve(
        ProblemConfig("convection", iterations=2, data=str(data)), tmp_path / "run", progress=False
    )
    with np.load(tmp_path / "run" / "prediction.npz") as fields:
        np.testing.assert_array_equal(fields["observed_values"], [[1.0], [0.3]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": "euler"}, "no problem 'euler'"),
        ({"optimizer": "L-BFGS"}, "no optimizer 'L-BFGS'.*snr_adam"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"iterations": 0}, "iterations must be an integer >= 1"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"snr_options": {"gte": 1}}, "no SNR option 'gte'.*gate"),
        ({"snr_options": {"gate": "wide"}}, "Invalid gate"),
        ({"snr_options": {"gate": {"zz": 1}}}, "no gate option 'zz'"),
        ({"snr_options": {"sigma": 0.1}}, "no SNR option 'sigma'"),
    ],
)
def test_bad_config_leaves_nothing_behind(tmp_path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config = ProblemConfig(**{"problem": "convection", **changes})
        solve(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_snr_options_reach_the_optimizer_and_are_put_back() -> None:
    set_SNR_options(gate="soft", lambd=3.0)
    try:
        assert gate_of_run({"gate": "hard"}) == Gate("hard", z=1.5)
        assert (SNR_options["gate"], SNR_options["lambd"]) == ("soft", 3.0)
    finally:
        set_SNR_options()


def gate_of_run(options: dict) -> Gate:
    """The gate of a run with these options, after one step."""
    config = ProblemConfig("convection", points=32, snr_options=options).resolved()
    model = compile_model(config, config.build())
    model.train(iterations=1, display_every=10, verbose=0)
    assert isinstance(model.opt, SNRAdam)
    moments = model.opt.moments(next(model.net.parameters()))
    assert moments is not None
    return moments.gate


@pytest.mark.parametrize(
    ("options", "gate"),
    [
        ({}, Gate("stein", z=1.5)),
        ({"coordinates": "own"}, Gate("stein", z=1.0)),
        ({"gate": "hard", "z": 2}, Gate("hard", z=2)),
        ({"gate": {"form": "soft", "alpha": 3.0}}, Gate("soft", alpha=3.0)),
        ({"gate": Gate("snr", z=2.5, warmup_steps=7)}, Gate("snr", z=2.5, warmup_steps=7)),
        ({"floor": "stream", "gate": "soft", "lambd": 4.0}, Gate("soft", lambd=4.0)),
    ],
    ids=str,
)
def test_a_run_has_the_gate_of_its_options_and_so_has_its_json(options: dict, gate: Gate) -> None:
    assert gate_of_run(options) == gate
    config = ProblemConfig("convection", snr_options={**options, "betas": (0.8, 0.9)})
    written = json.loads(json.dumps(asdict(config)))
    assert gate_of_run(ProblemConfig(**written).snr_options) == gate


def test_adamw_has_torchs_weight_decay_and_spares_the_unknowns() -> None:
    config = ProblemConfig("lynx_hare", "adamw").resolved()
    model = compile_model(config, config.build())
    assert isinstance(model.opt, torch.optim.AdamW)
    assert [group["weight_decay"] for group in model.opt.param_groups] == [0.01, 0]


def test_compare_and_repeat(tmp_path) -> None:
    """The second call finds all runs finished; the third refuses other settings."""
    options = {"betas": (0.8, 0.9)}  # a tuple is a list in JSON
    configs = [
        ProblemConfig("convection", "adamw", iterations=20),
        ProblemConfig("convection", "snr_adam", iterations=20, snr_options=options),
    ]
    first = compare(configs, tmp_path, progress=False)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("checkpoint.pt")}
    assert compare(configs, tmp_path, progress=False) == first
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("checkpoint.pt")}
    assert [s.optimizer for s in first] == ["adamw", "snr_adam"]
    with open(tmp_path / "comparison.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["final_error"]) for row in table] == [s.final_error for s in first]
    assert (tmp_path / "comparison.png").exists()
    with pytest.raises(FileExistsError, match="other settings"):
        compare([ProblemConfig("convection", "adamw", iterations=30)], tmp_path, progress=False)


def test_compare_refuses_runs_that_would_share_a_folder(tmp_path) -> None:
    with pytest.raises(ValueError, match="same problem, optimizer and seed"):
        compare([CONVECTION, CONVECTION], tmp_path, progress=False)


def test_compare_finishes_an_interrupted_run(tmp_path, monkeypatch, interrupt_after) -> None:
    config = ProblemConfig("convection", "snr_adam", iterations=20)
    with monkeypatch.context():
        interrupt_after(8)
        with pytest.raises(KeyboardInterrupt):
            compare([config], tmp_path, progress=False)
    monkeypatch.undo()
    (summary,) = compare([config], tmp_path, progress=False)
    assert (summary.iterations, summary.interrupted) == (20, False)


def test_compare_names_a_damaged_file_before_any_work(tmp_path) -> None:
    config = ProblemConfig("convection", "adam", iterations=3)
    (summary,) = compare([config], tmp_path, progress=False)
    prediction = tmp_path / "convection-adam-seed0" / "prediction.npz"
    whole = prediction.read_bytes()
    prediction.write_bytes(whole[:-100])
    other = replace(config, optimizer="sgd")
    with pytest.raises(ValueError, match=r"prediction\.npz is"):
        compare([other, config], tmp_path, progress=False)
    assert not (tmp_path / "convection-sgd-seed0").exists()
    prediction.unlink()  # made anew, without training again
    (again,) = compare([config], tmp_path, progress=False)
    assert again == replace(summary, seconds=again.seconds)
    with np.load(prediction) as fields:
        assert fields["fit"].shape == fields["reference"].shape


def test_measurements_that_have_changed_are_refused(tmp_path) -> None:
    data = tmp_path / "own.csv"
    data.write_text("x,t,u\n1,0,1\n2,0.5,0.3\n")
    config = ProblemConfig("convection", iterations=2, data=str(data))
    solve(config, tmp_path / "run", progress=False)
    data.write_text("x,t,u\n1,0,1\n2,0.5,0.4\n")
    with pytest.raises(ValueError, match=r"other measurements than .*own\.csv"):
        solve(replace(config, iterations=4), tmp_path / "run", resume=True, progress=False)


def test_a_run_without_a_checkpoint_starts_over(tmp_path) -> None:
    """Killed in its first moments, or stopped by a full disk."""
    folder = RunFolder(tmp_path / "run", "problem")
    with folder.locked():
        folder.begin({"lr": 1})
    assert solve(CONVECTION, tmp_path / "run", progress=False).iterations == 60


def test_a_folder_in_use_is_refused(tmp_path) -> None:
    with RunFolder(tmp_path, "problem").locked():
        with pytest.raises(BlockingIOError, match="in use by process"):
            solve(CONVECTION, tmp_path, progress=False)
        with pytest.raises(BlockingIOError, match="in use by process"):
            compare([CONVECTION], tmp_path, progress=False)


def test_a_full_disk_at_a_checkpoint(tmp_path, monkeypatch) -> None:
    """The run ends with a clear line, and goes on from the checkpoint before."""
    monkeypatch.setattr(Recorder, "checkpoint_seconds", 0.0)
    write, left = os.fsync, [8]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"Cannot write .*No space left on device.*is kept"):
            solve(CONVECTION, tmp_path / "parts", progress=False)
    assert 0 < checkpoint(tmp_path / "parts")["iteration"] < 60
    solve(CONVECTION, tmp_path / "parts", resume=True, progress=False)
    solve(CONVECTION, tmp_path / "whole", progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".lock")}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": [{"iteration": "x"}]}, "its rows is"),
        ({"seconds": "long"}, "its seconds is 'long'"),
        ({"iteration": None}, "its iteration is None"),
        ({"network": {}}, "loading state_dict"),
        ({"optimizer": "mistyped"}, "checkpoint.pt is damaged"),
        ({"torch_rng": 3}, "checkpoint.pt is damaged"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_right_checksum_of_wrong_contents_is_named_and_nothing_is_touched(
    tmp_path, changed: dict, message: str
) -> None:
    config = replace(CONVECTION, iterations=2)
    solve(config, tmp_path, progress=False)
    whole = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    if changed.get("optimizer"):  # a state that is accepted and fails in the first step
        states = whole["state"]["optimizer"]["state"]
        states[next(iter(states))] = dict.fromkeys(states[next(iter(states))], "x")
        changed = {}
    whole["state"] |= changed
    write_state(tmp_path / "checkpoint.pt", whole)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        solve(replace(config, iterations=4), tmp_path, resume=True, progress=False)
    assert contents(tmp_path) == before


def test_files_that_a_figure_needs_are_looked_at_before_the_work(tmp_path) -> None:
    solve(replace(CONVECTION, iterations=2), tmp_path, progress=False)
    whole = contents(tmp_path)
    with np.load(tmp_path / "prediction.npz") as archive:
        arrays = dict(archive)
    for name, value in (("outputs", np.zeros(0)), ("fit", np.zeros(3)), ("points", arrays["fit"])):
        write_arrays(tmp_path / "prediction.npz", arrays | {name: value})
        with pytest.raises(ValueError, match=r"prediction\.npz is damaged"):
            memorization(tmp_path, progress=False)
    assert "observed_fit_high" in arrays
    for lone in ("fit_low", "observed_fit_high"):
        kept = {name: value for name, value in arrays.items() if name != lone}
        write_arrays(tmp_path / "prediction.npz", kept)
        with pytest.raises(ValueError, match=r"prediction\.npz is damaged.*belong together"):
            memorization(tmp_path, progress=False)
    (tmp_path / "prediction.npz").write_bytes(whole["prediction.npz"])
    (tmp_path / "metrics.csv").write_bytes(b"iteration,relative_l2\n0,\xff\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged"):
        memorization(tmp_path, progress=False)
    (tmp_path / "metrics.csv").write_bytes(whole["metrics.csv"])
    found = json.loads(whole["summary.json"])
    for name, value in (
        ("iterations", -1),
        ("seconds", "x"),
        ("unknowns", []),
        ("seed", True),
        ("unknowns_interval", {"k": [1]}),
        ("unknowns_standard_error", []),
    ):
        (tmp_path / "summary.json").write_text(json.dumps(found | {name: value}))
        with pytest.raises(ValueError, match=f"summary.json is damaged: its {name} is"):
            memorization(tmp_path, progress=False)
    assert not (tmp_path / "memorization.csv").exists()


def test_compare_finishes_a_run_that_was_killed_before_its_figure(tmp_path) -> None:
    config = replace(CONVECTION, iterations=2)
    compare([config], tmp_path, progress=False)
    folder = tmp_path / "convection-snr_adam-seed0"
    (folder / "figure.png").unlink()
    (folder / ".figure.png.1-ab.partial").write_bytes(b"half")
    compare([config], tmp_path, progress=False)
    assert (folder / "figure.png").exists() and not list(folder.glob(".*.partial"))


@pytest.mark.parametrize(
    ("after", "stop"), [(3, 4), (8, 8), (9, 10)], ids=["first stage", "between", "second stage"]
)
def test_gauss_newton_has_two_stages_and_resumes_in_each(
    tmp_path, interrupt_after, monkeypatch, after: int, stop: int
) -> None:
    monkeypatch.setattr("sciml_snr.runs.options.STAGES", (8, 5))
    config = ProblemConfig("lynx_hare", "snr_gn")
    whole = solve(config, tmp_path / "whole", progress=False)
    assert (whole.iterations, whole.lr, whole.ended_by) == (13, None, None)
    saved = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert saved["lr"] is None and saved["optimizer"] == "snr_gn"
    assert isinstance(saved["memorized_estimate"], float) and 0 <= saved["open_fraction"] <= 1
    with monkeypatch.context():
        interrupt_after(after)
        part = solve(config, tmp_path / "parts", progress=False)
    assert (part.iterations, part.interrupted) == (stop, True)
    monkeypatch.undo()
    monkeypatch.setattr("sciml_snr.runs.options.STAGES", (8, 5))
    solve(config, tmp_path / "parts", resume=True, progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_gauss_newton_ends_by_itself_and_says_why(tmp_path, monkeypatch) -> None:
    """Also where a run that has ended is resumed."""
    monkeypatch.setattr("sciml_snr.runs.options.STAGES", (3, 40))
    monkeypatch.setattr(
        "sciml_snr.deepxde.gauss_newton.SNRGaussNewton",
        functools.partial(SNRGaussNewton, tolerance=1e9, patience=2, ramp_steps=0),
    )
    config = ProblemConfig("lynx_hare", "snr_gn")
    summary = solve(config, tmp_path, progress=False)
    assert summary.iterations == 5 and "no direction stands out" in (summary.ended_by or "")
    assert int(float(rows(tmp_path)[-1]["iteration"])) == 5
    again = solve(config, tmp_path, resume=True, progress=False)
    assert (again.iterations, again.final_error) == (5, summary.final_error)
