"""Solvers against exact solutions: the law they reach, the order they reach it with, and the authors' own formulas."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from impulses import Impulses
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.gaussian import FourierGaussian, Gaussian, GaussianMixture
from suite.grid import GRIDS, time_grid
from suite.noise import Noise
from suite.process import PROCESSES, Process, process
from suite.solver import (
    DDIM,
    DEIS,
    SOLVERS,
    DPMpp2M,
    DPMpp3M,
    DPMppSDE2M,
    Euler,
    Heun,
    PredictorCorrector,
    Solver,
    sample,
)
from suite.stepping import knots

F64 = torch.float64
ANCHORED = [name for name in PROCESSES if process(name).anchored]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Counting(Denoiser):
    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.process)
        self.inner, self.calls = inner, 0

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.inner(x, t, y)


STD = torch.tensor([0.1, 0.3, 1.0], dtype=F64)


def conditional(p: Process) -> tuple[Gaussian, Tensor]:
    """A law of x0 (given y, where the process is anchored), and one y."""
    y = torch.tensor([[[0.7, -0.4, 0.2]]], dtype=F64)
    if p.anchored:
        return Gaussian(lambda y: 0.6 * y + 0.1, STD[None] ** 2, shape=(1, 3)), y
    return Gaussian(torch.tensor([[0.5, -0.2, 0.8]], dtype=F64), STD[None] ** 2), y


def law_reached(
    law: Gaussian, p: Process, solver: Solver, grid: Tensor, start: Gaussian, y: Tensor, draws: int = 0
) -> tuple[Tensor, Tensor]:
    """Mean and std of the result, exactly: with a Gaussian law every solver is affine in its start and in its draws."""
    draws = draws or 2 * len(grid) + 2
    x = start.mean_of().expand(draws + 2, 1, 3).clone()
    x[-1] += start.variance.sqrt()
    out = sample(law.denoiser(p), solver, grid, x, y=y.expand(draws + 2, 1, 3), noise=Impulses())
    mean = out[0]
    return mean[0], ((out[1:] - mean) ** 2).sum(0).sqrt()[0]


# --- one evaluation per step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process_name", ["vp", "flow"])
def test_evaluations(name: str, process_name: str) -> None:
    p, solver, steps = process(process_name), SOLVERS[name](), 7
    law, _ = conditional(p)
    denoiser = Counting(law.denoiser(p))
    sample(denoiser, solver, time_grid(p, steps), randn(2, 1, 3), noise=Noise.of(0))
    pure = name == "heun" and process_name == "flow"  # no second look from alpha = 0
    assert denoiser.calls == steps * solver.cost - (solver.cost - 1) - pure
    assert (solver.cost == 1) == (name not in ("heun", "pc"))
    for budget in (1, 10, 11):
        assert solver.steps_for(budget) * solver.cost - (solver.cost - 1) <= budget


# --- the law they reach ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    ("solver", "steps", "tolerance"),
    [
        ("ddim", 100, 0.04),
        ("heun", 40, 0.06),
        ("dpmpp-2m", 40, 0.02),
        ("dpmpp-3m", 40, 0.02),
        ("dpmpp-sde", 40, 0.03),
        ("deis", 40, 0.03),
        ("pc", 50, 0.03),
    ],
)
def test_exact_denoiser_gives_the_exact_conditional_law(name: str, solver: str, steps: int, tolerance: float) -> None:
    """From the exact law at t = 1. Where sigma(0) > 0 the last mean lacks the spread of x0 given x_0: `floor`."""
    p = process(name)
    law, y = conditional(p)
    mean, std = law_reached(law, p, SOLVERS[solver](), time_grid(p, steps, "logsnr"), law.marginal(p, 1.0, y), y)
    assert ((mean - law.mean_of(y)[0, 0]) / STD).abs().max() < 1e-6
    last = p.sigma(torch.zeros((), dtype=F64)) / p.alpha(torch.zeros((), dtype=F64))
    floor = torch.sqrt(STD**2 / (STD**2 + last**2))
    assert (std / (STD * floor) - 1).abs().max() < tolerance


@pytest.mark.parametrize("name", ["flow", "vp", "ouve", "ir-sde"])
def test_euler_reaches_the_law(name: str) -> None:
    p = process(name)
    law, y = conditional(p)
    mean, std = law_reached(law, p, Euler(), time_grid(p, 400, "quadratic"), law.marginal(p, 1.0, y), y)
    assert ((mean - law.mean_of(y)[0, 0]) / STD).abs().max() < 0.02
    assert (std / STD - 1).abs().max() < 0.03


@pytest.mark.parametrize("name", ANCHORED)
def test_start_mismatch_is_the_predicted_one(name: str) -> None:
    """`Process.start` takes y for x0. Along the flow z = alpha m + sqrt(alpha^2 c + sigma^2) w, so that at t = 0 the
    mean is off by sqrt(c / (alpha^2 c + sigma^2)) alpha (y - m) and the std is short by
    sigma / sqrt(alpha^2 c + sigma^2), with alpha and sigma those of t = 1."""
    p = process(name)
    law, y = conditional(p)
    one = torch.ones((), dtype=F64)
    alpha, sigma, c, m = p.alpha(one), p.sigma(one), STD**2, law.mean_of(y)[0, 0]
    spread = torch.sqrt(alpha**2 * c + sigma**2)
    started = Gaussian(p.start(torch.zeros(1, 1, 3, dtype=F64), y)[0], (sigma**2).expand(1, 3))
    mean, std = law_reached(law, p, DPMpp3M(), time_grid(p, 200, "logsnr"), started, y)
    end = p.sigma(torch.zeros((), dtype=F64))
    floor = torch.sqrt(c / (c + end**2))
    if name in ("sb-ve", "interpolant"):  # pinned at y: alpha = sigma = 0, and nothing is lost
        shift, ratio = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    else:
        shift, ratio = torch.sqrt(c) / spread * alpha * (y[0, 0] - m), sigma / spread
    torch.testing.assert_close((mean - m) / STD, shift * floor / STD, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(std / STD, ratio * floor, rtol=0.01, atol=0)
    if name == "ouve":  # the known mismatch of SGMSE+: alpha(1) = 0.22
        assert float((shift / STD).abs().max()) > 0.1 and float(ratio.min()) < 0.9
    if name in ("rddm", "resfusion"):
        assert float(shift.abs().max()) == 0 and float(ratio.min()) == 1


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp-2m", "dpmpp-3m", "dpmpp-sde", "deis", "pc"])
def test_mixture_weights(solver: str) -> None:
    p = process("vp-cosine")
    parts = [Gaussian(torch.full((1, 2), m, dtype=F64), torch.full((1, 2), 0.04, dtype=F64)) for m in (-1.0, 0.3, 1.2)]
    law = GaussianMixture(torch.tensor([0.5, 0.2, 0.3], dtype=F64), parts)
    noise = Noise.of(0)
    x = p.start(noise.normal(torch.empty(8000, 1, 2, dtype=F64)))
    steps = 120 if solver == "ddim" else 40
    out = sample(law.denoiser(p), SOLVERS[solver](), time_grid(p, steps, "logsnr"), x, noise=noise)
    weights = law.responsibilities(out).mean(0)
    assert 0.5 * (weights - law.weights).abs().sum() < 0.02


def test_correlated_prior() -> None:
    k2 = torch.fft.fftfreq(16, 1 / 16, dtype=F64) ** 2
    law = FourierGaussian(torch.zeros(1, 16, dtype=F64), (2 / (1 + k2))[None])
    p, noise = process("edm"), Noise.of(0)
    x = p.start(noise.normal(torch.empty(20_000, 1, 16, dtype=F64)))
    out = sample(law.denoiser(p), DPMpp2M(), time_grid(p, 30, "logsnr"), x)
    spectrum = (law.analyse(out).abs() ** 2).mean(0)
    torch.testing.assert_close(spectrum / law.variance, torch.ones(1, 16, dtype=F64), rtol=0, atol=0.06)


# --- convergence ----------------------------------------------------------------------------------------------------


def flow_state(p: Process, t: float, c: float, m: float, y: Tensor, w: float) -> Tensor:
    """The exact solution of the probability-flow ODE: `alpha m + sqrt(alpha^2 c + sigma^2) w + beta y`."""
    time = torch.tensor(t, dtype=F64)
    alpha, sigma = p.alpha(time), p.sigma(time)
    return alpha * m + torch.sqrt(alpha**2 * c + sigma**2) * w + p.beta(time) * y


def graded(n: int, start: float, stop: float) -> Tensor:
    """Uniform but for a first step of length h^1.5, so that the low order of a multistep start does not show."""
    h = (start - stop) / n
    first = torch.tensor([start, start - h**1.5], dtype=F64)
    return torch.cat([first, torch.linspace(start, stop, n + 1, dtype=F64)[1:]])


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "ouve", "ir-sde", "resfusion", "sb-ve", "interpolant"])
@pytest.mark.parametrize(
    ("solver", "order"),
    [(DDIM(), 1), (Euler(), 1), (Heun(), 2), (DPMpp2M(), 2), (DPMpp2M(midpoint=False), 2), (DPMpp3M(), 3), (DEIS(), 3)],
    ids=lambda v: (
        f"{type(v).__name__}{'' if getattr(v, 'midpoint', True) else '-exact'}" if isinstance(v, Solver) else str(v)
    ),
)
def test_order(name: str, solver: Solver, order: int) -> None:
    p, c, m, w, start, stop = process(name), 0.25, 0.7, 1.3, 0.8, 0.2
    y = torch.full((1, 1), -0.4, dtype=F64)
    law = Gaussian(torch.full((1,), m, dtype=F64), torch.full((1,), c, dtype=F64))
    exact, x = flow_state(p, stop, c, m, y, w), flow_state(p, start, c, m, y, w)
    errors = [
        float((sample(law.denoiser(p), solver, graded(n, start, stop), x, y=y) - exact).abs()) for n in (50, 100, 200)
    ]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.25), measured


@pytest.mark.parametrize("name", ["vp", "edm", "rddm", "sb-ve"])
@pytest.mark.parametrize("solver", [DDIM(1.0), DDIM(0.5), DPMppSDE2M()], ids=["ancestral", "half", "sde-2m"])
def test_weak_convergence_of_the_variance(name: str, solver: Solver) -> None:
    p = process(name)
    law, y = conditional(p)
    start, end = law.marginal(p, 0.9, y), law.marginal(p, 0.2, y)
    errors = []
    for n in (20, 40, 80, 160):
        _, std = law_reached(law, p, solver, time_grid(p, n, "logsnr", start=0.9, stop=0.2), start, y)
        errors.append(float((std**2 / end.variance[0] - 1).abs().max()))
    assert errors[-1] < 0.04
    assert all(b < 0.62 * a for a, b in itertools.pairwise(errors)), errors  # order one at least


def test_corrector_refreshes_the_noise() -> None:
    """One Langevin correction at s keeps exp(-2 snr^2) of eps and draws the rest anew."""
    p, snr = process("vp"), 0.4
    x, mean = randn(1, 1, 3), torch.full((1, 1, 3), 0.2, dtype=F64)

    class Fixed(Denoiser):
        def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return mean.expand_as(x)

    grid = torch.tensor([0.6, 0.5], dtype=F64)
    plain = sample(Fixed(p), DDIM(), grid, x)
    centre, moved = sample(Fixed(p), PredictorCorrector(snr), grid, x.expand(2, 1, 3), noise=Impulses())
    alpha, sigma, keep = p.alpha(grid[1]), p.sigma(grid[1]), math.exp(-2 * snr**2)
    torch.testing.assert_close(centre, (alpha * mean + keep * (plain - alpha * mean))[0])
    torch.testing.assert_close(moved - centre, (sigma * math.sqrt(1 - keep**2)).expand(1, 3))


def test_corrector_keeps_the_marginal() -> None:
    """Hundreds of corrections at one time: pure noise stays exact, and no variance loses more than snr^2 of itself."""
    p, snr = process("edm"), 0.16
    law, y = conditional(p)
    grid = torch.tensor([0.4, 0.4 - 1e-9], dtype=F64)
    solver = PredictorCorrector(snr, corrections=600)
    _, std = law_reached(law, p, solver, grid, law.marginal(p, 0.4, y), y, draws=610)
    ratio = std**2 / law.marginal(p, 0.4, y).variance[0]
    assert (ratio < 1 + 1e-6).all() and (ratio > 1 - snr**2).all() and float(ratio.min()) < 0.999
    flat = Gaussian(torch.zeros(1, 3, dtype=F64), torch.zeros(1, 3, dtype=F64))
    _, std = law_reached(flat, p, solver, grid, flat.marginal(p, 0.4), y, draws=610)
    torch.testing.assert_close(std, p.sigma(grid[1]).expand(3))


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", GRIDS)
def test_starts_are_safe_and_the_last_step_gives_the_mean(name: str, solver: str, kind: str) -> None:
    p = process(name)
    law, y = conditional(p)
    last: list[Tensor] = []
    noise = Noise.of(0)
    x = p.start(noise.normal(torch.empty(2, 1, 3)), y.float())
    grid = time_grid(p, 6, kind)
    out = sample(
        law.denoiser(p), SOLVERS[solver](), grid, x, y=y.float(), noise=noise, callback=lambda i, x, m: last.append(m)
    )
    assert out.dtype == torch.float32 and out.isfinite().all()
    torch.testing.assert_close(out, last[-1], rtol=0, atol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_stopping_early_leaves_a_state_of_the_process(name: str) -> None:
    p, stop = process(name), 0.3
    law, y = conditional(p)
    grid = time_grid(p, 60, "logsnr", stop=stop)
    mean, std = law_reached(law, p, DPMpp2M(), grid, law.marginal(p, 1.0, y), y)
    exact = law.marginal(p, stop, y)
    torch.testing.assert_close(mean, exact.mean_of()[0, 0])
    torch.testing.assert_close(std, exact.variance[0].sqrt(), rtol=0.01, atol=0)


@pytest.mark.parametrize("name", ["sb-ve", "interpolant"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_bridge_draws_its_first_step(solver: str, name: str) -> None:
    p = process(name)
    law, y = conditional(p)
    grid = time_grid(p, 5)
    with pytest.raises(InputError, match="noise=Noise"):
        sample(law.denoiser(p), SOLVERS[solver](), grid, y, y=y)
    a, b = (sample(law.denoiser(p), SOLVERS[solver](), grid, y, y=y, noise=Noise.of(seed)) for seed in (0, 1))
    assert not torch.allclose(a, b)


def test_settings_that_cannot_work() -> None:
    p = process("vp")
    law, _ = conditional(p)
    x = randn(2, 1, 3)
    with pytest.raises(InputError, match="between 0"):
        DDIM(1.5)
    with pytest.raises(InputError, match="at most sigma_s"):
        sample(law.denoiser(p), DDIM(1.0, lambda t, s: 2 * s.sigma), torch.tensor([0.8, 0.5]), x, noise=Noise.of(0))
    with pytest.raises(InputError, match="noise=Noise"):
        sample(law.denoiser(p), DDIM(0.5), time_grid(p, 4), x)
    with pytest.raises(InputError, match="snr"):
        PredictorCorrector(snr=0)
    with pytest.raises(InputError, match="one evaluation"):
        PredictorCorrector(predictor=Heun())
    with pytest.raises(InputError, match="anchored"):
        sample(law.denoiser(process("ouve")), DDIM(), time_grid(p, 4), x)
    with pytest.raises(TypeError, match="step"):
        sample(law.denoiser(p), Solver(), time_grid(p, 4), x)


# --- times per item and per element ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DDIM(), DDIM(1.0), Euler()], ids=["ddim", "ancestral", "euler"])
@pytest.mark.parametrize("name", ["vp", "flow", "ouve"])
def test_times_per_element(solver: Solver, name: str) -> None:
    """A buffer whose elements are at their own times moves as its elements would alone."""
    p = process(name)
    law, y = conditional(p)
    x = randn(1, 1, 3)
    each = [time_grid(p, 4, start=start, stop=stop) for start, stop in ((1.0, 0.5), (0.75, 0.25), (0.5, 0.0))]
    grid = torch.stack(each, 1).reshape(5, 1, 1, 3)
    together = sample(law.denoiser(p), solver, grid, x, y=y, noise=Noise.of(3))
    for i, times in enumerate(each):
        alone = sample(law.denoiser(p), solver, times, x, y=y, noise=Noise.of(3))
        torch.testing.assert_close(together[..., i], alone[..., i])


@pytest.mark.parametrize("name", ["flow", "ve"])
def test_elements_at_rest_stay(name: str) -> None:
    p = process(name)
    law, _ = conditional(p)
    x = randn(2, 1, 3)
    grid = torch.tensor([[1.0, 0.0, 0.4], [0.5, 0.0, 0.4], [0.0, 0.0, 0.1]], dtype=F64).reshape(3, 1, 1, 3)
    states: list[Tensor] = []
    sample(law.denoiser(p), DDIM(), grid, x, callback=lambda i, x, m: states.append(x))
    assert torch.equal(states[0][..., 1:], x[..., 1:]) and torch.equal(states[1][..., 1], x[..., 1])
    assert not torch.equal(states[1][..., 2], x[..., 2])


def test_multistep_solvers_want_one_time() -> None:
    p = process("vp")
    law, _ = conditional(p)
    grid = torch.tensor([[1.0, 0.5], [0.5, 0.2]]).reshape(2, 2, 1, 1)
    for solver in (Heun(), DPMpp2M(), DPMpp3M(), DPMppSDE2M(), DEIS(), PredictorCorrector()):
        with pytest.raises(InputError, match="use ddim or euler"):
            sample(law.denoiser(p), solver, grid, randn(2, 1, 3))


# --- reproducibility ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["dpmpp-sde", "pc"])
def test_an_item_does_not_depend_on_its_neighbours(solver: str) -> None:
    p = process("vp")
    law, _ = conditional(p)

    def run(identities: list[str]) -> Tensor:
        noise = Noise.of(0, identities)
        x = p.start(noise.normal(torch.empty(len(identities), 1, 3)))
        return sample(law.denoiser(p), SOLVERS[solver](), time_grid(p, 8), x, noise=noise)

    torch.testing.assert_close(run(["a", "b", "c"])[1:2], run(["b"]), rtol=0, atol=1e-6)
    assert not torch.allclose(run(["a"]), run(["b"]))


def test_complex_states() -> None:
    p = process("edm")
    law = Gaussian(torch.zeros(1, 3, dtype=F64), STD[None] ** 2)
    re, im = 80 * randn(2, 1, 3), 80 * randn(2, 1, 3, seed=1)
    grid = time_grid(p, 8, "karras")
    both = sample(law.denoiser(p), DPMpp2M(), grid, torch.complex(re, im))
    parts = [sample(law.denoiser(p), DPMpp2M(), grid, part) for part in (re, im)]
    torch.testing.assert_close(both, torch.complex(*parts))


def test_no_graph_is_kept() -> None:
    p = process("vp")
    law, _ = conditional(p)
    scale = torch.ones((), dtype=F64, requires_grad=True)

    class Trainable(Denoiser):
        def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return scale * law.denoiser(p)(x, t, y)

    assert not sample(Trainable(p), DDIM(), time_grid(p, 4), randn(1, 1, 3)).requires_grad


def test_knots_know_the_clean_state() -> None:
    p = process("ve")
    *_, before, last = knots(p, time_grid(p, 4), randn(1, 1, 3))
    assert float(last.alpha) == 1 and float(last.beta) == 0 and float(last.sigma) == 0 and last.clean
    assert float(before.sigma) > 0 and not before.clean
