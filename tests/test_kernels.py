"""One step at a time against the formulas the authors of each process print."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from impulses import Impulses
from torch import Tensor

from suite.denoiser import Denoiser
from suite.gaussian import Gaussian
from suite.grid import time_grid
from suite.noise import Noise
from suite.process import Process, process
from suite.solver import (
    DDIM,
    DPMpp2M,
    DPMpp3M,
    DPMppSDE2M,
    Euler,
    Solver,
    direct,
    incremental,
    resfusion_noise,
    residual_noise,
    sample,
)

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def one_step(
    p: Process, solver: Solver, t: float, s: float, x: Tensor, mean: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Centre and std of one step with the denoiser's answer prescribed."""

    class Fixed(Denoiser):
        def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return mean.expand_as(x)

    grid = torch.tensor([t, s], dtype=F64)
    out = sample(Fixed(p), solver, grid, x.expand(3, 1, 4), y=y.expand(3, 1, 4), noise=Impulses())
    return out[0], out[1, 0, 0] - out[0, 0, 0]


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.7), (0.5, 0.45), (0.2, 0.05)])
def test_the_authors_kernels_are_settings(t: float, s: float) -> None:
    x, mean, y = randn(1, 4), randn(1, 4, seed=1), randn(1, 4, seed=2)

    def coefficients(p: Process) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        time, after = torch.tensor(t, dtype=F64), torch.tensor(s, dtype=F64)
        return tuple(float(f(time)) for f in (p.alpha, p.beta, p.sigma)), tuple(
            float(f(after)) for f in (p.alpha, p.beta, p.sigma)
        )  # type: ignore[return-value]

    p = process("ir-sde")  # posterior of the mean-reverting SDE, mu = y
    (B, _, _), (C, _, _) = coefficients(p)
    A, lam = B / C, 50 / 255
    centre = y + A * (1 - C**2) / (1 - B**2) * (x - y) + C * (1 - A**2) / (1 - B**2) * (mean - y)
    got, std = one_step(p, DDIM(1.0), t, s, x, mean, y)
    torch.testing.assert_close(got, centre)
    assert float(std) == pytest.approx(lam * math.sqrt((1 - A**2) * (1 - C**2) / (1 - B**2)))

    p = process("rddm")  # x - (a_t - a_s) r - (b_t - sqrt(b_s^2 - v^2)) eps, v^2 = eta b_s^2 (b_t^2 - b_s^2) / b_t^2
    (_, at_, bt), (_, as_, bs) = coefficients(p)
    eta = 0.3
    v = math.sqrt(eta * (bt**2 - bs**2) * bs**2 / bt**2)
    eps = (x - (1 - at_) * mean - at_ * y) / bt
    centre = x - (at_ - as_) * (y - mean) - (bt - math.sqrt(bs**2 - v**2)) * eps
    got, std = one_step(p, DDIM(math.sqrt(eta), residual_noise), t, s, x, mean, y)
    torch.testing.assert_close(got, centre)
    assert float(std) == pytest.approx(v)

    p = process("resshift")  # (eta_s/eta_t) x + (1 - eta_s/eta_t) D, variance kappa^2 (eta_s/eta_t) (eta_t - eta_s)
    (_, eta_t, _), (_, eta_s, _) = coefficients(p)
    got, std = one_step(p, DDIM(1.0, residual_noise), t, s, x, mean, y)
    torch.testing.assert_close(got, eta_s / eta_t * x + (1 - eta_s / eta_t) * mean)
    assert float(std) == pytest.approx(2 * math.sqrt(eta_s / eta_t * (eta_t - eta_s)))

    p = process("resfusion")  # the DDPM step x -> (x - beta_n / sqrt(1 - abar_t) resnoise) / sqrt(alpha_n)
    (_, b, sigma_t), (_, b_s, _) = coefficients(p)
    abar_t, abar_s = (1 - b) ** 2, (1 - b_s) ** 2
    alpha_n = abar_t / abar_s
    eps = (x - (2 * math.sqrt(abar_t) - 1) * mean - b * y) / sigma_t
    resnoise = eps + (1 - math.sqrt(alpha_n)) * math.sqrt(1 - abar_t) / (1 - alpha_n) * (y - mean)
    centre = (x - (1 - alpha_n) / math.sqrt(1 - abar_t) * resnoise) / math.sqrt(alpha_n)
    got, std = one_step(p, DDIM(1.0, resfusion_noise), t, s, x, mean, y)
    torch.testing.assert_close(got, centre)
    assert float(std) == pytest.approx(math.sqrt((1 - abar_s) / (1 - abar_t) * (1 - alpha_n)))


def test_ddim_with_full_noise_is_ddpm() -> None:
    p, t, s = process("vp"), 0.6, 0.5
    abar_t, abar_s = (float(p.alpha(torch.tensor(v, dtype=F64))) ** 2 for v in (t, s))
    x, mean = randn(1, 4), randn(1, 4, seed=1)
    beta = 1 - abar_t / abar_s
    centre = (math.sqrt(abar_s) * beta * mean + math.sqrt(1 - beta) * (1 - abar_s) * x) / (
        1 - abar_t
    )  # Ho et al., eq. 7
    got, std = one_step(p, DDIM(1.0), t, s, x, mean, x)
    torch.testing.assert_close(got, centre)
    assert float(std) == pytest.approx(math.sqrt((1 - abar_s) / (1 - abar_t) * beta))


def values(p: Process, t: float) -> tuple[float, float, float]:
    time = torch.tensor(t, dtype=F64)
    return float(p.alpha(time)), float(p.beta(time)), float(p.sigma(time))


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.7), (0.5, 0.45), (0.2, 0.05)])
def test_the_bridges_samplers_are_ddim(t: float, s: float) -> None:
    """Jukic et al. 2024, the first-order discretisations of the bridge SDE and ODE, in their variances (alpha_t = 1)."""
    k, c = 2.6, 0.4
    square = lambda u: c * (k ** (2 * u) - 1) / (2 * math.log(k))  # noqa: E731
    end, x, mean, y = square(1), randn(1, 4), randn(1, 4, seed=1), randn(1, 4, seed=2)
    v_t, v_s, w_t, w_s = square(t), square(s), end - square(t), end - square(s)
    p = process("sb-ve")
    got, std = one_step(p, DDIM(1.0), t, s, x, mean, y)
    torch.testing.assert_close(got, v_s / v_t * x + (1 - v_s / v_t) * mean)
    assert float(std) == pytest.approx(math.sqrt(v_s * (1 - v_s / v_t)))
    got, _ = one_step(p, DDIM(), t, s, x, mean, y)
    kept = math.sqrt(v_s * w_s / (v_t * w_t))
    of_mean = (w_s - math.sqrt(w_t * v_s * w_s * w_t / (v_t * w_t))) / end
    of_y = (v_s - math.sqrt(v_t * v_s * v_t * w_s / (v_t * w_t))) / end
    torch.testing.assert_close(got, kept * x + of_mean * mean + of_y * y)


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.7), (0.5, 0.45), (0.2, 0.05)])
def test_ancestral_ouve_is_the_posterior_of_its_sde(t: float, s: float) -> None:
    """SGMSE+'s SDE `dx = gamma (y - x) dt + g dw`: `p(x_s | x_t, x0)` by Bayes from its transition kernel."""
    p, gamma, x, mean, y = process("ouve"), 1.5, randn(1, 4), randn(1, 4, seed=1), randn(1, 4, seed=2)
    (_, _, sigma_t), (_, _, sigma_s) = values(p, t), values(p, s)
    keep = math.exp(-gamma * (t - s))
    q = sigma_t**2 - keep**2 * sigma_s**2  # of x_t given x_s
    prior = math.exp(-gamma * s) * mean + (1 - math.exp(-gamma * s)) * y
    variance = 1 / (1 / sigma_s**2 + keep**2 / q)
    centre = variance * (prior / sigma_s**2 + keep * (x - (1 - keep) * y) / q)
    got, std = one_step(p, DDIM(1.0), t, s, x, mean, y)
    torch.testing.assert_close(got, centre)
    assert float(std) == pytest.approx(math.sqrt(variance))


def test_reverse_diffusion_of_ouve_is_the_first_order_of_that_step() -> None:
    """The Euler-Maruyama predictor of SGMSE+, `x - (f - g^2 score) h + g sqrt(h) xi`: its centre differs by O(h^2)."""
    p, gamma, ratio, t = process("ouve"), 1.5, math.log(10), 0.6
    mean, y = randn(1, 4, seed=1), randn(1, 4, seed=2)
    alpha, beta, sigma = values(p, t)
    g2 = 2 * ratio * 0.05**2 * 10 ** (2 * t)
    x = alpha * mean + beta * y + sigma * randn(1, 4)  # a state that is likely
    score = -(x - alpha * mean - beta * y) / sigma**2
    gaps, stds = [], []
    for h in (4e-3, 2e-3, 1e-3):
        got, std = one_step(p, DDIM(1.0), t, t - h, x, mean, y)
        gaps.append(float((got - (x - (gamma * (y - x) - g2 * score) * h)).abs().max()))
        stds.append(float(std) / math.sqrt(g2 * h))
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.05) and gaps[1] / gaps[2] == pytest.approx(4, rel=0.05)
    assert stds[-1] == pytest.approx(1, abs=0.01)


def test_flow_takes_straight_steps() -> None:
    """Lipman et al. 2023: `x + (s - t) u`, u = eps - x0, exact along a straight path."""
    x, mean, t, s = randn(1, 4), randn(1, 4, seed=1), 0.6, 0.35
    eps = (x - (1 - t) * mean) / t
    for solver in (Euler(), DDIM()):
        got, _ = one_step(process("flow"), solver, t, s, x, mean, x)
        torch.testing.assert_close(got, x + (s - t) * (eps - mean))


@pytest.mark.parametrize("s", [0.45, 0.0])
def test_rddm_with_two_heads(s: float) -> None:
    """Liu et al. 2024: `x - (a_t - a_s) r - (b_t - b_s) eps`, r and eps as two heads say them, at odds with x."""
    p, t = process("rddm"), 0.7
    x, r, eps, y = (randn(1, 1, 4, seed=i) for i in range(4))

    class TwoHeads(Denoiser):
        def predict(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
            assert y is not None
            return y - r, eps

    (_, a_t, b_t), (_, a_s, b_s) = values(p, t), values(p, s)
    grid = torch.tensor([t, s], dtype=F64)
    got = sample(TwoHeads(p), DDIM(form=incremental), grid, x, y=y)
    torch.testing.assert_close(got, x - (a_t - a_s) * r - (b_t - b_s) * eps)
    assert not torch.allclose(got, sample(TwoHeads(p), DDIM(), grid, x, y=y))


@pytest.mark.parametrize("name", ["rddm", "vp", "sb-ve", "ouve"])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_both_forms_of_ddim_agree(name: str, eta: float) -> None:
    p, x, mean, y = process(name), randn(1, 4), randn(1, 4, seed=1), randn(1, 4, seed=2)
    both = [one_step(p, DDIM(eta, form=form), 0.8, 0.3, x, mean, y) for form in (direct, incremental)]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


def test_mrs_is_dpm_solver_on_z() -> None:
    """MRS's five samplers in x, with their mu, against DDIM, DPM-Solver++(2M, 3M) and their ancestral kin in z."""
    p, mu = process("ir-sde"), randn(1, 1, 4, seed=3)
    law = Gaussian(lambda y: 0.6 * y, torch.full((1, 4), 0.2, dtype=F64), shape=(1, 4))
    grid = time_grid(p, 12, "logsnr")[:-1]
    alpha, sigma = p.alpha(grid).tolist(), p.sigma(grid).tolist()
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    denoiser, start = law.denoiser(p), p.start(randn(1, 1, 4), mu)

    def by_hand(kind: str) -> list[Tensor]:
        x, seen, out = start, [], []
        noise = Noise.of(5)
        for t, s in itertools.pairwise(range(len(grid))):
            D, h, ratio = denoiser(x, grid[t].reshape(1, 1, 1), mu), lam[s] - lam[t], sigma[s] / sigma[t]
            d1 = d2 = torch.zeros_like(D)
            if seen and not kind.endswith("1"):  # divided differences in lambda, in units of h
                r0 = (lam[t] - lam[t - 1]) / h
                d1 = (D - seen[-1]) / r0
                if len(seen) > 1 and kind == "ode-3":
                    r1 = (lam[t - 1] - lam[t - 2]) / h
                    older = (seen[-1] - seen[-2]) / r1
                    d1, d2 = d1 + (d1 - older) * r0 / (r0 + r1), (d1 - older) / (r0 + r1)
            if kind.startswith("sde"):
                damped = math.exp(-2 * h)
                new = (
                    ratio * math.exp(-h) * x + alpha[s] * (1 - damped) * D + alpha[s] * (1 - (1 - damped) / 2 / h) * d1
                )
                new = new + sigma[s] * math.sqrt(1 - damped) * noise.normal(x)
                new = new + mu * (1 - alpha[s] / alpha[t] * damped - alpha[s] * (1 - damped))
            else:
                phi1 = math.expm1(-h)
                phi2 = phi1 / h + 1
                phi3 = phi2 / h - 0.5
                new = ratio * x - alpha[s] * (phi1 * D - phi2 * d1 + phi3 * d2)
                new = new + mu * (1 - ratio + ratio * alpha[t] - alpha[s])
            x, seen = new, [*seen, D]
            out.append(x)
        return out

    settings: list[tuple[str, Solver]] = [
        ("ode-1", DDIM()),
        ("ode-2", DPMpp2M(midpoint=False)),
        ("ode-3", DPMpp3M(halved=True)),
        ("sde-1", DDIM(1.0)),
        ("sde-2", DPMppSDE2M(midpoint=False)),
    ]
    for kind, solver in settings:
        states: list[Tensor] = []
        sample(denoiser, solver, grid, start, y=mu, noise=Noise.of(5), callback=lambda i, x, mean: states.append(x))  # noqa: B023
        for ours, theirs in zip(states, by_hand(kind), strict=True):
            torch.testing.assert_close(ours, theirs)
