"""Leave-one-out population risk: exact where it can be, unbiased over many runs elsewhere."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sciml_snr import (
    SNRSOAP,
    Gate,
    NoisyLoss,
    NoisyTerm,
    PopulationRisk,
    SNRAdam,
    exact_label_noise,
)
from sciml_snr.handover import Facts
from sciml_snr.measure.risk import accumulated, displacement, growth_exponent
from tests.cases import Told, batch, network

D, B = 20, 64
SCALES = torch.linspace(0.2, 3, D)
TRUTH = torch.linspace(-1, 1, D)


class Regression:
    """Least squares on fresh Gaussian batches: the population risk is known exactly."""

    def __init__(self, make, seed: int) -> None:
        self.w = torch.nn.Parameter(torch.zeros(D))
        self.optimizer = make([self.w])
        self.estimate = PopulationRisk(self.optimizer, seed=seed)
        self.rng = torch.Generator().manual_seed(seed)
        self.start = self.risk()

    def risk(self) -> float:
        return float((SCALES * (self.w.detach() - TRUTH) ** 2).sum())

    def train(self, steps: int) -> "Regression":
        for _ in range(steps):
            x = torch.randn(B, D, generator=self.rng) * SCALES.sqrt()
            y = x @ TRUTH + 2 * torch.randn(B, generator=self.rng)
            self.estimate.step(lambda x=x, y=y: (x @ self.w - y) ** 2)
        return self


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=5e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=5e-3, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=5e-3, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, betas=(0.8, 0.95)),
    "snr": lambda p: SNRAdam(p, lr=0.05, gate="snr"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unbiased_on_fresh_batches(name: str) -> None:
    """Mean error over 60 runs within 3 standard errors, and small against what is corrected."""
    runs = [Regression(OPTIMIZERS[name], seed).train(25) for seed in range(60)]
    last = [run.estimate.rows[-1] for run in runs]
    true = np.array([run.risk() - run.start for run in runs])
    errors = np.array([row.change for row in last]) - true
    optimism = np.mean([row.training for row in last]) - true.mean()
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(60)
    assert abs(errors.mean()) < 0.25 * abs(optimism)
    assert 0.4 < errors.std() / np.mean([row.se for row in last]) < 1.4


def test_sgd_of_small_step_is_the_published_formula() -> None:
    """-eta (gbar^2 - Sigma / (b - 1)), the random signs averaged over 2,000 probes."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    w = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    lr = 1e-7
    estimate = PopulationRisk(torch.optim.SGD([w], lr=lr), probes=2000)
    g = -2 * y[:, None] * x
    estimate.step(lambda: (x @ w - y) ** 2)
    mean, sigma = g.mean(0), ((g - g.mean(0)) ** 2).mean(0)
    exact = -lr * float((mean**2 - sigma / 15).sum())
    scatter = lr * float(sigma.sum()) / 15 * np.sqrt(2 / 2000)
    assert abs(estimate.rows[-1].change - exact) < 4 * scatter
    assert estimate.rows[-1].training == pytest.approx(-lr * float((mean**2).sum()), rel=1e-5)


def test_with_the_labels_error_it_is_that_of_the_label_floor() -> None:
    """SGD: eta times the sum of the label floor's exact variance, whatever the residuals are."""
    torch.manual_seed(0)
    x, w = torch.randn(16, 3, dtype=torch.float64), torch.nn.Parameter(torch.ones(3).double())
    sigma = torch.linspace(0.1, 1, 16, dtype=torch.float64)[:, None]
    y = (x @ w).detach()  # interpolated: the samples' gradients are 0
    estimate = PopulationRisk(torch.optim.SGD([w], lr=1e-7), probes=2000)

    def terms() -> list[NoisyTerm]:
        return [NoisyTerm((x @ w - y)[:, None], sigma)]

    estimate.step(lambda: (x @ w - y) ** 2, terms=terms)
    exact = 1e-7 * float(exact_label_noise([w], terms())[w].sum())
    assert abs(estimate.rows[-1].change - exact) < 4 * exact * np.sqrt(2 / 2000)


@pytest.mark.parametrize("gate", ["none", "soft", "snr"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("floors", ["stream", "given", "declared", "with an excess"])
def test_displacement_is_where_the_optimizer_goes(gate, weight_decay, floors) -> None:
    """Against steps of copies that were really given the shifted gradient."""
    facts = Facts(misfit=torch.tensor(100.0), summands=torch.tensor(72.0), opens=True)

    def trained(last_shift):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(12, dtype=torch.float64))
        noise = None if floors in ("stream", "given") else Told()
        own = {"form": gate, "z": 1.0} if noise else {"form": gate}
        own |= {"rise_steps": 3, "discrepancy": floors == "with an excess"}
        optimizer = SNRAdam([p], lr=1e-3, gate=own, weight_decay=weight_decay, rho=0.9, noise=noise)
        floor = {p: torch.full((12,), 0.2, dtype=torch.float64)} if floors == "given" else None
        for t in range(5):
            before = p.detach().clone()
            p.grad = torch.randn(12, dtype=torch.float64) + (last_shift if t == 4 else 0)
            if noise is not None:
                noise.tell({p: torch.randn(12, dtype=torch.float64)}, {p: p.grad}, facts)
            optimizer.step(floor=floor)
        return optimizer, p, p.detach() - before

    shift = torch.linspace(-1, 1, 12, dtype=torch.float64)
    optimizer, p, moved = trained(0)
    _, _, moved_otherwise = trained(shift)
    found = displacement(optimizer, p, optimizer.param_groups[0], shift)
    found = found - displacement(optimizer, p, optimizer.param_groups[0], 0 * shift)
    assert torch.allclose(found.detach(), moved_otherwise - moved, rtol=1e-9, atol=1e-12)
    moments = optimizer.moments(p)
    assert moments.is_gated == (gate != "none")
    if moments.is_gated:
        assert float(moments.excess) == pytest.approx(0.4 if floors == "with an excess" else 0)


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_displacement_of_torchs_own(cls) -> None:
    def trained(last_shift):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(12, dtype=torch.float64))
        optimizer = cls([p], lr=1e-3, betas=(0.7, 0.9))
        for t in range(3):
            before = p.detach().clone()
            p.grad = torch.randn(12, dtype=torch.float64) + (last_shift if t == 2 else 0)
            optimizer.step()
        return optimizer, p, p.detach() - before

    shift = torch.linspace(-1, 1, 12, dtype=torch.float64)
    (optimizer, p, moved), (_, _, otherwise) = trained(0), trained(shift)
    group = optimizer.param_groups[0]
    found = displacement(optimizer, p, group, shift) - displacement(optimizer, p, group, 0 * shift)
    assert torch.allclose(found.detach(), otherwise - moved, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_training_is_not_disturbed(beside) -> None:
    """The same bits as a loop of the user's own, declared noise included."""
    nets = [network(), network()]
    for net, watched in zip(nets, (True, False), strict=True):
        data = NoisyLoss(sigma=0.1)
        optimizer = SNRAdam(net.parameters(), lr=1e-2, noise=data)
        estimate = PopulationRisk(optimizer)
        for t in range(5):
            x, y = batch(t)
            optimizer.zero_grad()
            if watched:
                estimate.begin((net(x) - y).square().mean(1))
            loss = data(net(x), y)
            if beside:
                loss = loss + net(x).square().mean()
            loss.backward()
            optimizer.step()
            if watched:
                estimate.end((net(x) - y).square().mean(1))
        assert optimizer.beside_exact is beside
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q)


class Measured:
    """A network that fits a fixed set of noisy values, with the noise declared."""

    def __init__(self, beside: bool) -> None:
        self.net, (self.x, self.y) = network(torch.float64), batch(0, 32, torch.float64)
        self.beside = beside
        self.data = NoisyLoss(0.1, reduction="none")
        self.optimizer = SNRAdam(
            self.net.parameters(), lr=1e-2, noise=self.data, gate=Gate("snr", z=1.0)
        )

    def losses(self) -> Tensor:
        return self.data(self.net(self.x), self.y).squeeze(1)

    def extra(self) -> Tensor:
        return self.net(self.x + 1).square().mean()

    def terms(self) -> list[NoisyTerm]:
        return [NoisyTerm(self.net(self.x) - self.y, 0.1)]

    def watch(self, terms: bool) -> PopulationRisk:
        estimate = PopulationRisk(self.optimizer)
        extra = self.extra if self.beside else None
        for _ in range(20):
            estimate.step(self.losses, extra, self.terms if terms else None)
        return estimate

    def train(self) -> None:
        for _ in range(20):
            self.optimizer.zero_grad()
            loss = self.losses().mean()
            (loss + self.extra() if self.beside else loss).backward()
            self.optimizer.step()


@pytest.mark.parametrize("terms", [False, True], ids=["scatter", "the labels' error"])
@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_the_declared_loss_gives_the_samples_losses(beside, terms) -> None:
    """The watch's own backward passes through them leave the optimizer nothing."""
    watched, alone = Measured(beside), Measured(beside)
    estimate = watched.watch(terms)
    alone.train()
    for p, q in zip(watched.net.parameters(), alone.net.parameters(), strict=True):
        assert torch.equal(p, q)
    assert watched.optimizer.beside_exact is beside
    before, after = network(torch.float64), watched.net

    @torch.no_grad()
    def loss(net) -> float:
        found = (net(watched.x) - watched.y).square().mean()
        return float(found + net(watched.x + 1).square().mean() if beside else found)

    row = estimate.rows[-1]
    assert row.step == 20
    assert row.training == pytest.approx(loss(after) - loss(before), rel=1e-9)
    assert row.change > row.training


@pytest.mark.parametrize("gate", ["none", Gate("snr", z=1.0)], ids=["none", "snr"])
def test_the_correction_with_noise_declared_by_a_loop(gate) -> None:
    """A parameter per datum, f_i = sin(w_i): the random signs do not matter, and it is exactly
    sum_i s_i s'_i cos(w_i) cos(w'_i) D_i, with D by differences of the step.
    """
    n, sigma = 16, 0.4
    rng = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.randn(n, generator=rng, dtype=torch.float64))
    y = torch.sin(w.detach()) + torch.randn(n, generator=rng, dtype=torch.float64)
    data = NoisyLoss(sigma, reduction="none")
    optimizer = SNRAdam([w], lr=0.05, gate=gate, noise=data)
    estimate = PopulationRisk(optimizer)

    def deviation() -> Tensor:
        """Of the mean loss's derivative by a prediction; s in the above."""
        misfit = ((torch.sin(w.detach()) - y) / sigma).square().mean().clamp_min(1)
        return 2 * sigma / n / misfit.sqrt()

    for _ in range(6):
        before = w.detach().clone(), deviation()
        estimate.step(
            lambda: data(torch.sin(w), y), terms=lambda: [NoisyTerm(torch.sin(w) - y, sigma)]
        )
        found = [row.training - row.change for row in estimate.rows[-2:]]
        parts = before[0].cos() * before[1], w.detach().cos() * deviation()
        ends = [
            displacement(optimizer, w, optimizer.param_groups[0], shift)
            for shift in (0.3 * parts[0], -0.3 * parts[0])
        ]
        known = (parts[1] * (ends[0] - ends[1]).detach() / 0.6).sum()
        assert known < 0
        assert found[1] - found[0] == pytest.approx(float(known), rel=1e-9)
    assert (optimizer.gate_stats().mean_q < 0.9) == (gate != "none")


def test_on_re_used_data_it_is_no_risk_and_turns_early() -> None:
    """As the module says: wrong by many standard errors, minimum before the true one."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 30), torch.randn(40)
    held = torch.randn(2000, 30)
    truth = 0.3 * torch.randn(30)
    y += x @ truth
    w = torch.nn.Parameter(torch.zeros(30))
    estimate = PopulationRisk(torch.optim.SGD([w], lr=0.005))
    risks = []
    for _ in range(800):
        risks.append(float((held @ (w.detach() - truth)).square().mean()))
        estimate.step(lambda: (x @ w - y) ** 2)
    last = estimate.rows[-1]
    assert abs(last.change - (risks[-1] - risks[0])) > 10 * last.se
    assert 0 < estimate.best_step < np.argmin(risks)
    assert risks[estimate.best_step] < risks[0]


def test_several_kinds_of_samples_and_an_exact_term() -> None:
    """Two halves of one batch, each a term of half the weight, are nearly the whole; extra counts.

    The optimism is corrected by each half's own mean, so that only the sums agree.
    """
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.zeros(3))
    x, y = torch.randn(64, 3), torch.randn(64)
    estimate = PopulationRisk(torch.optim.SGD([w], lr=1e-3), probes=500)

    def losses() -> list[Tensor]:
        rows = 0.5 * (x @ w - y) ** 2
        return [rows[:32], rows[32:]]

    loss = estimate.step(losses, lambda: ((w - 1) ** 2).sum())
    assert loss == pytest.approx(float((y**2).mean()) + 3, rel=1e-5)
    extra = float(((w.detach() - 1) ** 2).sum()) - 3
    data = float(((x @ w.detach() - y) ** 2).mean() - (y**2).mean())
    assert estimate.rows[-1].training == pytest.approx(extra + data, rel=1e-3)
    halves = [-2 * y[s, None] * x[s] for s in (slice(32), slice(32, None))]
    sigma = sum(float(g.var(0, correction=1).sum()) / 32 / 4 for g in halves)
    known = estimate.rows[-1].change - estimate.rows[-1].training
    assert known == pytest.approx(1e-3 * sigma, rel=0.15)


def test_labels_error_stops_before_the_noise_is_memorized() -> None:
    """A wide linear model, Adam: interpolation in the end; the stop is within 1.5 of the best."""
    torch.manual_seed(0)
    x, truth = torch.randn(40, 60), 0.3 * torch.randn(60)
    y = x @ truth + torch.randn(40)
    w = torch.nn.Parameter(torch.zeros(60))
    estimate = PopulationRisk(torch.optim.Adam([w], lr=0.01))
    risks = []
    for _ in range(1000):
        risks.append(float((x @ (w.detach() - truth)).square().mean()))
        estimate.step(
            lambda: (x @ w - y) ** 2, terms=lambda: [NoisyTerm((x @ w - y)[:, None], 1.0)]
        )
    best = min(risks)
    assert risks[-1] > 1.15 * best
    assert risks[estimate.best_step] < 1.5 * best


def test_stops_and_knows_the_best() -> None:
    """Data of nothing but noise, learned at a high rate: the risk rises from the start."""
    run = Regression(lambda p: torch.optim.SGD(p, lr=5e-3, momentum=0.9), 0).train(60)
    best = run.estimate.best_step
    changes = [row.change for row in run.estimate.rows]
    assert changes[best] == min(changes) and best > 0
    assert run.estimate.should_stop(60 - best) and not run.estimate.should_stop(61 - best)


def test_drift_and_diffusion() -> None:
    """Minibatch gradients of a network along its path: slopes 1 and 1/2, each +- 0.1.

    The walk is one of 30, root mean square: a single one is far from its mean.
    """
    x, y = batch(0, 128, torch.float64)
    net = network(torch.float64)
    params = list(net.parameters())
    optimizer = torch.optim.SGD(params, lr=1e-4)
    rng = torch.Generator().manual_seed(0)
    drawn, mean = [], []
    for _ in range(150):
        losses = (net(x) - y).square().mean(1)
        rows = torch.autograd.grad(losses, params, torch.eye(128).double(), is_grads_batched=True)
        gradients = torch.cat([g.flatten(1) for g in rows], 1)
        picked = torch.randint(0, 128, (30, 16), generator=rng)
        drawn.append(gradients[picked].mean(1))
        mean.append(gradients.mean(0))
        for p, g in zip(params, rows, strict=True):
            p.grad = g[picked[0]].mean(0)
        optimizer.step()
    steps = torch.stack(drawn, 1)
    drift, _ = accumulated(steps[0], torch.stack(mean))
    walks = torch.stack([accumulated(walk, torch.stack(mean))[1] for walk in steps])
    assert growth_exponent(drift) == pytest.approx(1.0, abs=0.1)
    assert growth_exponent(walks.square().mean(0).sqrt()) == pytest.approx(0.5, abs=0.1)


def test_bad_input() -> None:
    net = network()
    for optimizer in (SNRSOAP(net.parameters()), torch.optim.RMSprop(net.parameters())):
        with pytest.raises(ValueError, match=f"no leave-one-out.*{type(optimizer).__name__}"):
            PopulationRisk(optimizer)
    with pytest.raises(ValueError, match="amsgrad"):
        PopulationRisk(torch.optim.Adam(net.parameters(), amsgrad=True))
    with pytest.raises(ValueError, match="real parameters"):
        PopulationRisk(torch.optim.SGD(network(torch.bfloat16).parameters(), lr=1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="probes must be at least 1"):
        PopulationRisk(optimizer, probes=0)
    estimate = PopulationRisk(optimizer)
    x, y = batch(0)
    losses = (net(x) - y).square()
    with pytest.raises(RuntimeError, match="without begin"):
        estimate.end(losses.mean(1))
    for bad, message in [
        (losses, "one loss per sample"),
        (losses[:1, 0], "one loss per sample"),
        (losses.detach().mean(1), "not attached"),
        ([], "no losses"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimate.begin(bad)
    with pytest.raises(ValueError, match="no terms"):
        estimate.begin(losses.mean(1), terms=[])
