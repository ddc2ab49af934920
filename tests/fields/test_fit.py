"""The fit loop: what it does with noise, interruption, resumption, seeds, bad options."""

import csv
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sciml_snr import Gate, NoisyLoss, NoisyTerm
from sciml_snr.fields import fit
from sciml_snr.fields.fit import (
    Training,
    build_optimizer,
    check_kept,
    fitted,
    standardized,
    total_loss,
    train,
)
from sciml_snr.fields.networks import Siren
from sciml_snr.runs.options import FIT_OPTIMIZERS, FitOptions
from tests.cases import assert_plain, assert_same_bits

SIGMA = 0.3


class Curve:
    """sin(5 x) with noise, in batches; ``interrupt_at``: a Ctrl-C to this process in that step."""

    def __init__(self, n: int = 256, batch: int | None = 32, interrupt_at: int = 0) -> None:
        rng = torch.Generator().manual_seed(1)
        self.x = torch.linspace(-1, 1, n)[:, None]
        self.clean = torch.sin(5 * self.x)
        self.y = self.clean + SIGMA * torch.randn(n, 1, generator=rng)
        self.batch = batch
        self.interrupt_at = interrupt_at
        self.calls = 0
        self.noise = NoisyLoss(SIGMA)

    def terms(self, network, rng):
        self.calls += 1
        if self.calls == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        x, y = self.x, self.y
        if self.batch is not None:
            rows = torch.randint(len(x), (self.batch,), generator=rng)
            x, y = x[rows], y[rows]
        return [NoisyTerm(network(x) - y, SIGMA, population=len(self.x))], None

    def metrics(self, network):
        with torch.no_grad():
            return {"error": float((network(self.x) - self.clean).square().mean())}


def net() -> nn.Module:
    torch.manual_seed(0)
    return Siren(1, 1, 16, 2, first_omega_0=10.0)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_end(one: Path, other: Path) -> None:
    states = [torch.load(f / "checkpoint.pt", weights_only=True)["state"] for f in (one, other)]
    for state in states:
        state.pop("seconds"), state.pop("numpy_rng")  # nothing draws from numpy
        state["optimizer"] = state["optimizer"]["state"]
        for row in state["history"]:
            row.pop("seconds")
    assert_same_bits(states[0], states[1])
    timeless = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in rows(f)] for f in (one, other)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("optimizer", FIT_OPTIMIZERS)
@pytest.mark.parametrize("batch", [None, 32])
def test_interrupted_and_resumed_fit_has_the_same_bits(tmp_path, optimizer, batch) -> None:
    options = FitOptions(optimizer, lr=1e-3, steps=47, floor_every=3, cooldown=0.8)
    train(net(), Curve(batch=batch), options, folder=tmp_path / "whole", progress=False)
    part = Curve(batch=batch, interrupt_at=23)
    folder = tmp_path / "parts"
    training = train(net(), part, options, folder=folder, progress=False)
    assert (training.interrupted, training.step) == (True, 23)
    torch.manual_seed(5)  # what happened between the two does not matter
    resumed = Siren(1, 1, 16, 2, first_omega_0=10.0)
    training = train(
        resumed, Curve(batch=batch), options, folder=folder, resume=True, progress=False
    )
    assert (training.interrupted, training.step) == (False, 47)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_learning_rates_of_a_cooldown() -> None:
    options = FitOptions(lr=0.5, steps=10, cooldown=0.4)
    rates = [options.lr_at(step) for step in range(11)]
    np.testing.assert_allclose(rates, 7 * [0.5] + [0.375, 0.25, 0.125, 0.0], atol=1e-12)
    assert {FitOptions(lr=0.5, steps=10).lr_at(step) for step in range(10)} == {0.5}
    assert FitOptions(lr=0.5, steps=4, cooldown=1.0).lr_at(1) == 0.375


def test_every_step_has_its_learning_rate() -> None:
    """The step that a closed form says: Adam's first two on a constant gradient have length lr."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

    class Descent:
        noise = NoisyLoss(SIGMA)

        def terms(self, network, rng):
            seen.append(float(network.w.detach()))
            return [], network.w.sum()

        def metrics(self, network):
            return {}

    seen: list[float] = []
    slope = Slope()
    options = FitOptions("adam", lr=0.5, steps=4, cooldown=0.5)
    train(slope, Descent(), options, progress=False)
    np.testing.assert_allclose(
        np.diff([*seen, float(slope.w.detach())]), [-0.5, -0.5, -0.5, -0.25], rtol=1e-5
    )


def test_a_cooldown_quiets_what_batches_do_to_the_fit() -> None:
    """Adam at a high rate in small batches: its last steps' noise is in its end."""
    errors = {}
    for cooldown in (0.0, 0.3):
        ends = []
        for seed in range(3):
            torch.manual_seed(seed)
            network, curve = Siren(1, 1, 16, 2, first_omega_0=10.0), Curve(batch=8)
            options = FitOptions("adam", lr=5e-3, steps=400, seed=seed, cooldown=cooldown)
            train(network, curve, options, progress=False)
            ends.append(curve.metrics(network)["error"])
        errors[cooldown] = np.median(ends)
    assert errors[0.3] < 0.7 * errors[0.0]


def test_a_fit_is_repeated_with_its_learning_rates(tmp_path) -> None:
    """Also one that was interrupted, and one that was resumed with more steps than were planned."""
    options = FitOptions("snr_adam", lr=1e-3, steps=40, cooldown=0.9)
    interrupted, repeated = net(), net()
    training = train(interrupted, Curve(interrupt_at=25), options, progress=False)
    assert fitted(repeated, Curve(), options, progress=False, like=training).step == 25
    assert_same_bits(interrupted.state_dict(), repeated.state_dict())

    train(net(), Curve(), options, folder=tmp_path, progress=False)
    longer = replace(options, steps=60)
    resumed, repeated = net(), net()
    training = train(resumed, Curve(), longer, folder=tmp_path, resume=True, progress=False)
    assert training.budgets == [[0, 40], [40, 60]]
    fitted(repeated, Curve(), longer, progress=False, like=training)
    assert_same_bits(resumed.state_dict(), repeated.state_dict())
    with pytest.raises(ValueError, match="has taken 60 steps already: 50 is too few"):
        train(
            net(),
            Curve(),
            replace(options, steps=50),
            folder=tmp_path,
            resume=True,
            progress=False,
        )


@pytest.mark.parametrize("batch", [None, 32])
def test_a_fit_with_patience_resumes_with_the_same_bits(tmp_path, batch) -> None:
    options = FitOptions("snr_adam", lr=1e-3, steps=47, floor_every=3, patience=40)
    whole = net()
    train(whole, Curve(batch=batch), options, folder=tmp_path / "whole", progress=False)
    part = Curve(batch=batch, interrupt_at=2 * 23)  # a batch is looked at twice a step
    training = train(net(), part, options, folder=tmp_path / "parts", progress=False)
    assert (training.interrupted, training.step) == (True, 23)
    resumed = net()
    train(
        resumed,
        Curve(batch=batch),
        options,
        folder=tmp_path / "parts",
        resume=True,
        progress=False,
    )
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert_same_bits(whole.state_dict(), resumed.state_dict())


def test_watching_the_risk_leaves_the_steps_alone() -> None:
    ends = []
    for patience in (None, 30):
        network = net()
        options = FitOptions("adam", lr=1e-3, steps=30, patience=patience)
        training = train(network, Curve(batch=32), options, progress=False)
        ends.append([row["loss"] for row in training.history])
    assert ends[0] == ends[1]


def test_patience_stops_near_the_best_and_goes_back_there() -> None:
    """Adam, full batch, without it: six times as many steps as it needs."""
    errors, trainings = [], []
    for patience in (None, 200):
        network, curve = net(), Curve(n=64, batch=None)
        options = FitOptions("adam", lr=1e-3, steps=1200, patience=patience)
        trainings.append(train(network, curve, options, progress=False))
        errors.append(curve.metrics(network)["error"])
    assert trainings[0].kept_step == trainings[0].step == 1200
    assert trainings[1].kept_step == trainings[1].step - 200 < 1000
    best = min(row["error"] for row in trainings[0].history)
    assert errors[1] < min(1.3 * best, 0.6 * errors[0])


def test_nothing_is_measured_where_nothing_was_learned() -> None:
    with pytest.raises(ValueError, match="before the first step"):
        check_kept(Training(step=5, kept_step=0))
    check_kept(Training(step=5, kept_step=1))


def test_patience_is_not_for_snr_soap() -> None:
    with pytest.raises(ValueError, match=r"patience.*snr_adam or adam"):
        FitOptions("snr_soap", patience=100)
    with pytest.raises(ValueError, match="patience must be an integer"):
        FitOptions("adam", patience=0)


def test_same_seed_same_fit() -> None:
    fits = []
    for seed in (0, 0, 1):
        network = net()
        train(network, Curve(), FitOptions(steps=20, lr=1e-3, seed=seed), progress=False)
        fits.append(network.state_dict())
    assert_same_bits(fits[0], fits[1])
    assert not torch.equal(fits[0]["layers.1.weight"], fits[2]["layers.1.weight"])


def test_the_callers_chance_is_left_alone() -> None:
    network, curve = net(), Curve()
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(network, curve, FitOptions(steps=3), progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_gated_fits_do_not_memorize_what_adam_does() -> None:
    """Full batch, six times as many steps as Adam needs: its error climbs towards sigma^2."""
    error = {}
    for optimizer in FIT_OPTIMIZERS:
        training = train(
            net(),
            Curve(n=64, batch=None),
            FitOptions(optimizer, lr=1e-3, steps=1200, floor_every=5),
            progress=False,
        )
        errors = [row["error"] for row in training.history]
        error[optimizer] = (errors[-1], min(errors), training.history[-1]["memorized"])
    final, best, memorized = error["adam"]
    assert final > 2.5 * best and memorized > 0.3
    for optimizer in ("snr_soap", "snr_adam"):
        final, _, memorized = error[optimizer]
        assert final < 0.4 * error["adam"][0]
        assert memorized < 0.15


def test_log() -> None:
    training = train(net(), Curve(), FitOptions(steps=250, lr=1e-3), progress=False)
    steps = [row["step"] for row in training.history]
    assert steps[:3] == [1, 2, 4] and steps[-1] == 250
    assert len({tuple(row) for row in training.history}) == 1
    assert 0 <= training.history[-1]["open_fraction"] <= 1
    assert training.history[-1]["loss"] < training.history[0]["loss"]
    adam = train(net(), Curve(), FitOptions("adam", steps=3), progress=False)
    assert "open_fraction" not in adam.history[-1]


def test_checkpoints_are_written_on_the_way(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", 0.0)
    seen = []

    class Watched(Curve):
        def metrics(self, network):
            state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
            assert_plain({k: v for k, v in state.items() if k not in ("network", "optimizer")})
            seen.append(state["step"])
            return {}

    train(net(), Watched(), FitOptions(steps=4), folder=tmp_path, progress=False)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("optimizer", FIT_OPTIMIZERS)
@pytest.mark.parametrize("killed_in", [1, 5])
def test_a_killed_fit_resumes_from_its_last_checkpoint(tmp_path, optimizer, killed_in) -> None:
    """There is one before the first step, when the floor is still empty."""
    options = FitOptions(optimizer, lr=1e-3, steps=9)
    train(net(), Curve(), options, folder=tmp_path / "whole", progress=False)

    class Killed(Curve):
        def terms(self, network, rng):
            if self.calls == killed_in:
                raise MemoryError
            return super().terms(network, rng)

    with pytest.raises(MemoryError):
        train(net(), Killed(), options, folder=tmp_path / "parts", progress=False)
    train(net(), Curve(), options, folder=tmp_path / "parts", resume=True, progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["state"]
    assert state["step"] == 9


def test_a_damaged_checkpoint_is_named(tmp_path) -> None:
    train(net(), Curve(), FitOptions(steps=2), folder=tmp_path, progress=False)
    (tmp_path / "checkpoint.pt").write_text("xx")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a file of sciml-snr"):
        train(net(), Curve(), FitOptions(steps=2), folder=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("optimizer", FIT_OPTIMIZERS)
def test_progress_tells_what_the_gate_does(optimizer, monkeypatch) -> None:
    shown = []
    told = fit._status
    monkeypatch.setattr(fit, "_status", lambda row: shown.append(told(row)) or shown[-1])
    train(net(), Curve(), FitOptions(optimizer, steps=2), progress=False)
    assert len(shown) == 2 and all("loss" in text and "memorized" in text for text in shown)
    assert all(("open" in text) == (optimizer != "adam") for text in shown)


def test_numpys_integers_are_integers() -> None:
    options = FitOptions(steps=np.int64(3), batch_size=np.int32(2))
    assert (type(options.steps), type(options.batch_size)) == (int, int)


def test_a_longer_budget(tmp_path) -> None:
    train(net(), Curve(), FitOptions(steps=10), folder=tmp_path, progress=False)
    training = train(
        net(), Curve(), FitOptions(steps=15), folder=tmp_path, resume=True, progress=False
    )
    assert training.step == 15 and len(training.history) == len(rows(tmp_path)) == 15


def test_nothing_to_resume(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train(net(), Curve(), FitOptions(), folder=tmp_path, resume=True, progress=False)


def test_a_second_interrupt_is_not_caught(tmp_path) -> None:
    class Impatient(Curve):
        def terms(self, network, rng):
            self.calls += 1
            if self.calls == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().terms(network, rng)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(net(), Impatient(), FitOptions(steps=10), folder=tmp_path, progress=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("optimizer", FIT_OPTIMIZERS)
def test_divergence_is_an_error(optimizer) -> None:
    with pytest.raises(FloatingPointError, match=r"[Ll]ower the learning rate"):
        train(net(), Curve(), FitOptions(optimizer, lr=1e25, steps=30), progress=False)


def test_terms_and_extra_add_up() -> None:
    a, b = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0]])
    terms = [NoisyTerm(a, 0.5, weight=2.0), NoisyTerm(b, 0.0)]
    squares, absolute = NoisyLoss(0.5), NoisyLoss(0.5, "l1")
    assert total_loss(squares, terms, torch.tensor(0.25)).item() == 2 * 5 + 4 + 0.25
    assert total_loss(squares, terms, None).item() == 14
    assert total_loss(absolute, terms, None).item() == 2 * 2 + 2
    assert standardized(terms).tolist() == [2, 6]  # exact data do not count
    assert standardized(terms[1:]).tolist() == []


def one_step(options: FitOptions, exact: float = 0.0):
    """The optimizer of a fit after a step on noisy data, and on an exact term of this weight."""
    network, data = net(), NoisyLoss(SIGMA)
    optimizer = build_optimizer(network, data, options)
    curve = Curve(batch=None)
    loss = data(network(curve.x), curve.y)
    if exact:
        loss = loss + exact * network(curve.x[:3]).square().mean()
    loss.backward()
    optimizer.step()
    gate = optimizer.moments(network.layers[0].weight).gate if options.optimizer != "adam" else None
    return optimizer, gate


def test_default_gate_is_that_of_the_loss_with_a_constant_threshold() -> None:
    optimizer, gate = one_step(FitOptions(floor_every=7))
    assert optimizer.defaults["coordinates"] == "eigen" and not optimizer.beside_exact
    assert gate == Gate("stein", z=2.0)  # without the discrepancy
    assert optimizer.defaults["floor_every"] == 7
    _, gate = one_step(FitOptions(gate={"rise_steps": 3, "discrepancy": True}))
    assert gate == Gate("stein", z=2.0, rise_steps=3, discrepancy=True)
    optimizer, gate = one_step(FitOptions("snr_adam", gate={"form": "soft", "alpha": 2.0}))
    assert optimizer.defaults["coordinates"] == "own"
    assert gate == Gate("soft", alpha=2.0)  # a threshold of its own, not the z
    _, gate = one_step(FitOptions(gate=Gate("hard", z=1.0)))
    assert gate == Gate("hard", z=1.0)
    optimizer, gate = one_step(FitOptions("snr_adam", gate={"z": 1.0}), exact=1.0)
    assert optimizer.beside_exact and gate == Gate("stein", z=1.0)
    optimizer, _ = one_step(FitOptions("adam"))
    assert type(optimizer) is torch.optim.Adam


def test_the_floor_of_a_fit_is_that_of_its_data() -> None:
    """Beside exact terms their noisy part is looked at, too; so it is with ``follow`` off."""
    curve = Curve()
    optimizer = build_optimizer(net(), curve.noise, FitOptions("snr_adam"))
    assert optimizer.noise == [curve.noise]
    for follow in (True, False):
        optimizer, gate = one_step(FitOptions("snr_adam", gate={"follow": follow}), exact=1.0)
        assert gate.follow is follow
        kept = [s for p, s in optimizer.state.items() if isinstance(p, torch.Tensor)]
        assert all("exp_floor" in state for state in kept)
        assert all(("exp_avg_noisy" in state) is follow for state in kept)


def test_frozen_parameters_stay(tmp_path) -> None:
    network = net()
    network.layers[0].requires_grad_(False)
    before = network.layers[0].weight.clone()
    train(network, Curve(), FitOptions(steps=5, lr=1e-2), progress=False)
    assert torch.equal(network.layers[0].weight, before)
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        train(network, Curve(), FitOptions(steps=5), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "no optimizer 'sgd'.*snr_soap"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"lr": math.nan}, "lr must be a positive number"),
        ({"steps": 0}, "steps must be an integer"),
        ({"steps": 1.5}, "steps must be an integer"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"floor_every": 0}, "floor_every must be"),
        ({"cooldown": 1.5}, "cooldown must be a share"),
        ({"cooldown": math.nan}, "cooldown must be a share"),
        ({"gate": {"form": "wide"}}, "Invalid gate"),
        ({"gate": {"zz": 1}}, "no gate option .zz.*Choose from: form, z,"),
        ({"gate": {"gate": "hard"}}, "no gate option .gate"),
        ({"gate": {"z": -1.0}}, "Invalid z"),
        ({"gate": {"z": 1.0}, "optimizer": "adam"}, "adam has no gate"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitOptions(**options)


def test_inr_does_not_import_deepxde() -> None:
    import subprocess
    import sys

    code = "import sys, sciml_snr.fields; sys.exit('deepxde' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_long_fit_says_how_long_it_will_take_and_a_short_one_does_not(monkeypatch, capsys):
    options = FitOptions(optimizer="adam", lr=1e-3, steps=50, device="cpu", seed=0)
    train(Siren(1, 1, hidden_features=8), Curve(), options, progress=True)
    assert "on this machine" not in capsys.readouterr().out
    monkeypatch.setattr(fit, "TOLD_BEYOND", 0.0)
    train(Siren(1, 1, hidden_features=8), Curve(), options, progress=True)
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"30 steps to go at \d+ ms each: about \d\S* m?s on this machine", told)
    train(Siren(1, 1, hidden_features=8), Curve(), options, progress=False)
    assert not capsys.readouterr().out
