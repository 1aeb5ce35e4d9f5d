"""The methods with loops of their own (daps, red_diff, smc) against closed forms of what they do at each level."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from posterior_cases import Case, assert_law, r2, step_knots
from torch import Tensor
from torch.testing import assert_close

from suite.grid import time_grid
from suite.measurement import Measurement
from suite.noise import Noise
from suite.posterior.daps import DAPS
from suite.posterior.red_diff import REDDiff, _Adam
from suite.posterior.smc import SMC, _Cloud, bridge


@pytest.mark.parametrize(("operator", "linear"), [("ct", True), ("mri", True), ("ct", False)])
def test_the_inner_draw_of_daps_has_the_law_of_the_product(operator: str, linear: bool) -> None:
    """`N(D, r^2) N(y | A x0)`: exactly where A is linear, by Langevin steps where that is not known."""
    case, draws, variance = Case("white", operator, truths=1, uneven=True), 3000, 0.4
    A, noise = case.problem.linear, case.std
    measurement = case.measurement if linear else Measurement(lambda x: A(x), case.data, noise, linear=False)
    D = case.state(0.2)
    method = DAPS(tolerance=1e-10, iterations=100, langevin_steps=150)
    x = method.draw(measurement, D.expand(draws, -1, -1, -1), variance, Noise.of(0))
    n = D.numel()
    precision = case.matrix.T / case.variances @ case.matrix + torch.eye(n, dtype=torch.float64) / variance
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (case.matrix.T / case.variances @ case.vectors[0] + D.flatten() / variance)
    assert_law(x.flatten(1), mean, covariance)


@pytest.mark.parametrize("renoise", ["shared", "fresh"])
@pytest.mark.parametrize("process", ["vp", "resfusion"])
def test_daps_keeps_unobserved_white_data_at_their_variance_at_every_level(process: str, renoise: Any) -> None:
    case, count, steps = Case("white", "mask", process, truths=1), 3000, 12
    unobserved = case.matrix.sum(0) == 0
    method = DAPS(renoise)
    first, last = (-math.log(q) for q in method.levels)
    dynamics = case.problem.dynamics
    times = time_grid(dynamics, steps, "logsnr", log_snr_range=(first, last))[1:]
    ratios: list[Tensor] = []

    def look(number: int, x: Tensor, _: Tensor) -> None:
        t = times[number - 1]
        total = 1.0 if number == steps else float(dynamics.alpha(t) ** 2 + dynamics.sigma(t) ** 2)
        ratios.append(x.flatten(1)[:, unobserved].var(0).mean() / total)

    like = case.like.expand(count, -1, -1, -1)
    y = None if case.y is None else case.y.expand_as(like)
    method.run(case.prior, case.measurement, like, noise=Noise.of(0), steps=steps, y=y, callback=look)
    assert_close(torch.stack(ratios), torch.ones(steps, dtype=torch.float64), rtol=0, atol=0.05)


@pytest.mark.parametrize(("operator", "weight"), [("ct", 1.0), ("mri", 1.0), ("blur", 3.0)])
def test_red_diff_finds_the_maximum_a_posteriori(operator: str, weight: float) -> None:
    """`|W (A x - y)|^2 / 2 - weight log p(x)` for a correlated Gaussian p, minimised densely."""
    case = Case("correlated", operator, "vp")
    law = case.problem.law
    prior = weight * torch.linalg.inv(law.covariance())
    system = case.matrix.T / case.variances @ case.matrix + prior
    pull = case.vectors / case.variances @ case.matrix + (prior @ law.mean_of()[0].double().flatten())
    exact = torch.linalg.solve(system, pull.T).T
    found = REDDiff(weight).run(case.prior, case.measurement, case.like, noise=Noise.of(0), steps=400)
    gap = (found.flatten(1) - exact) / torch.linalg.inv(system).diagonal().sqrt()
    assert float(gap.square().mean().sqrt()) < 0.05


def test_the_optimiser_of_red_diff_is_adam() -> None:
    x = torch.nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    reference = torch.optim.Adam([x], lr=0.1, betas=(0.9, 0.99), eps=0.0)
    adam, ours = _Adam(x.detach(), (0.9, 0.99)), torch.zeros(3, 4, dtype=torch.float64)
    for k in range(5):
        x.grad = Noise.of(k).normal(ours)
        ours = ours - 0.1 * adam.direction(x.grad)
        reference.step()
        assert_close(ours, x.detach())


# --- particles ---------------------------------------------------------------------------------------------------------


def cloud(case: Case, particles: int) -> _Cloud:
    method = SMC(particles, iterations=300, tolerance=1e-12)
    return _Cloud(method, case.prior, case.measurement, case.like, Noise.of(0), case.y)


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
def test_the_bridge_is_the_conditional_law_of_a_markov_chain(process: str) -> None:
    """z_t = (alpha_t / alpha_s) z_s + noise, so (z_s, z_t) given x0 is a Gaussian of known covariance."""
    p = Case(process=process).problem.dynamics
    t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    a_t, a_s, v_t, v_s = float(p.alpha(t)), float(p.alpha(s)), float(p.sigma(t)) ** 2, float(p.sigma(s)) ** 2
    covariance = a_t / a_s * v_s
    gain = covariance / v_t
    expected = (gain, a_s - gain * a_t, math.sqrt(v_s - gain * covariance))
    assert [float(v) for v in bridge(p, t, s)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("operator", ["ct", "mri"])
def test_particles_weigh_by_the_twist(operator: str) -> None:
    case, t, count = Case("mixture", operator), 0.5, 3
    states = [case.state(t) + 0.3 * k for k in range(count)]
    mean = torch.cat([case.prior(x, case.time(t)) for x in states])
    expected = mean + 0.2 * Noise.of(2).normal(mean)
    S = r2(case, t) * case.matrix @ case.matrix.T + case.variances.diag()

    def log_twist(d: Tensor) -> Tensor:
        centre = (d.flatten(1) @ case.matrix.T).reshape(count, case.truths, -1)
        return torch.distributions.MultivariateNormal(centre, S).log_prob(case.vectors)

    found = cloud(case, count)
    assert_close(found.weigh(mean, expected, case.time(t)), log_twist(mean) - log_twist(expected), rtol=1e-6, atol=1e-6)
    first, log = found.weigh(mean, None, case.time(t)), log_twist(mean)
    assert_close(first - first[:1], log - log[:1], rtol=1e-6, atol=1e-6)  # up to a constant of the filter


@pytest.mark.parametrize("process", ["vp", "ir-sde"])
def test_particles_foresee_the_denoised_mean_of_white_data(process: str) -> None:
    """So that all weights are 1: the proposal is the optimal one."""
    case = Case("white", "ct", process)
    t, s = step_knots(case, 0.6, 0.5)
    filters, x = cloud(case, 4), case.state(0.6).repeat(4, 1, 1, 1)
    new, expected = filters.move(x, case.prior(x, t.time, filters.y), t.time, s.time)
    assert_close(case.prior(new, s.time, filters.y), expected, rtol=0, atol=1e-6)


def test_systematic_resampling_keeps_shares_and_leaves_even_filters_alone() -> None:
    case, count = Case("white", "ct"), 10
    shares = torch.tensor([0.55, 0.23, 0.12, 0.05, 0.03, 0.02, 0, 0, 0, 0], dtype=torch.float64)
    weight = torch.stack([shares.clamp_min(1e-30).log(), torch.linspace(0, 0.1, count, dtype=torch.float64)], 1)
    rows, left = cloud(case, count).resample(weight)
    particle, item = (rows // case.truths).reshape(count, -1), (rows % case.truths).reshape(count, -1)
    assert bool((item == torch.arange(case.truths)).all())
    copies = torch.bincount(particle[:, 0], minlength=count)
    assert bool(((copies - count * shares).abs() < 1).all())
    assert bool((left[:, 0] == 0).all())
    assert particle[:, 1].tolist() == list(range(count))
    assert_close(left[:, 1], weight[:, 1])
