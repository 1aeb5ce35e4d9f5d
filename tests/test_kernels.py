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
from suite.solver import DDIM, DPMpp2M, Solver, resfusion_noise, residual_noise, sample

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


def test_mrs_is_dpm_solver_on_z() -> None:
    """MRS's ODE-1, ODE-2 and SDE-1 in x, with their mu, against DDIM, DPM-Solver++(2M) and ancestral DDIM in z."""
    p, mu = process("ir-sde"), randn(1, 1, 4, seed=3)
    law = Gaussian(lambda y: 0.6 * y, torch.full((1, 4), 0.2, dtype=F64), shape=(1, 4))
    grid = time_grid(p, 12, "logsnr")[:-1]
    alpha, sigma = p.alpha(grid).tolist(), p.sigma(grid).tolist()
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    denoiser, start = law.denoiser(p), p.start(randn(1, 1, 4), mu)

    def by_hand(kind: str) -> list[Tensor]:
        x, previous, out = start, None, []
        noise = Noise.of(5)
        for i, (t, s) in enumerate(itertools.pairwise(range(len(grid)))):
            D, h, ratio = denoiser(x, grid[t].reshape(1, 1, 1), mu), lam[s] - lam[t], sigma[s] / sigma[t]
            if kind == "sde-1":
                damped = math.exp(-2 * h)
                new = ratio * math.exp(-h) * x + alpha[s] * (1 - damped) * D
                new = new + sigma[s] * math.sqrt(1 - damped) * noise.normal(x)
                new = new + mu * (1 - alpha[s] / alpha[t] * damped - alpha[s] * (1 - damped))
            else:
                new = ratio * x - alpha[s] * math.expm1(-h) * D + mu * (1 - ratio + ratio * alpha[t] - alpha[s])
            if kind == "ode-2" and previous is not None:
                phi2 = math.expm1(-h) / h + 1
                new = new + alpha[s] * phi2 * (D - previous) / ((lam[t] - lam[i - 1]) / h)
            x, previous = new, D
            out.append(x)
        return out

    for kind, solver in (("ode-1", DDIM()), ("ode-2", DPMpp2M(midpoint=False)), ("sde-1", DDIM(1.0))):
        states: list[Tensor] = []
        sample(denoiser, solver, grid, start, y=mu, noise=Noise.of(5), callback=lambda i, x, mean: states.append(x))  # noqa: B023
        for ours, theirs in zip(states, by_hand(kind), strict=True):
            torch.testing.assert_close(ours, theirs)
