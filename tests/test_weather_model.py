"""The weather model against closed forms: predictive law, sampler, symmetries, climatology, baselines, test-beds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domains.weather.baselines import gaussian_crps, mixture_crps
from domains.weather.climate import fit_climatology
from domains.weather.denoiser import Condition, SeedDenoiser, condition, process_for, sample_residual, scalars_of
from domains.weather.hierarchy import LinearGaussian, empirical_basis, second_moments
from domains.weather.network import FieldConv, FieldNet
from domains.weather.physics import (
    GaussianField,
    TwoLevel,
    lorenz96,
    lorenz96_ensemble,
    runge_kutta,
    two_level_ensemble,
)

FIELD = GaussianField()


def exact_law() -> LinearGaussian:
    B, W = (torch.from_numpy(c).float() for c in FIELD.covariances())
    return LinearGaussian(torch.eye(len(B)), B, W, B, B + W, torch.zeros(len(B)))


@pytest.mark.parametrize("seeds", [0, 1, 2, 5])
def test_predictive_law_is_that_of_the_test_bed(seeds: int) -> None:
    given_ = FIELD.draw(3, seeds, seed=1)
    mean, covariance = FIELD.predictive(given_)
    law = exact_law().predictive(seeds)
    centre = torch.from_numpy((given_ - FIELD.mean).mean(1) if seeds else np.zeros((3, *FIELD.shape))).float()
    np.testing.assert_allclose(law.mean(centre.flatten(1)) + FIELD.mean, mean, atol=1e-3)
    dense = law.vectors @ torch.diag(law.values) @ law.vectors.T
    np.testing.assert_allclose(dense, covariance, atol=1e-3)


@pytest.mark.parametrize("seeds", [0, 1, 2, 5])
@pytest.mark.parametrize("solver", ["deis", "dpmpp-2m"])
def test_sampler_with_the_exact_denoiser_gives_the_exact_covariance(seeds: int, solver: str) -> None:
    """The sampler is linear here: its matrix, found from unit vectors, has no Monte-Carlo error."""
    law = exact_law().predictive(seeds)
    n = len(law.values)
    shape = (n, 1, *FIELD.shape)
    nothing = torch.zeros(shape)
    given_ = Condition(law, nothing, nothing, nothing, torch.ones(1, 1, *FIELD.shape))
    unit = torch.eye(n).reshape(shape)
    out = sample_residual(SeedDenoiser(None, given_, process_for(law)), unit, steps=16, solver=solver).flatten(1)
    covariance = torch.from_numpy(FIELD.predictive(np.zeros((1, seeds, *FIELD.shape)))[1]).float()
    error = torch.linalg.norm(out.T @ out - covariance) / torch.linalg.norm(covariance)
    assert error < 0.05
    wider = sample_residual(SeedDenoiser(None, given_, process_for(law)), unit, steps=16, solver=solver, spread=1.1)
    torch.testing.assert_close(wider.flatten(1), 1.1 * out, rtol=1e-4, atol=1e-5)


def test_moments_recover_the_law_and_two_seeds_leave_more_than_the_spread() -> None:
    data = torch.from_numpy(FIELD.draw(3000, 6, seed=3) - FIELD.mean).float().flatten(2)
    fitted = second_moments(data, data, None, empirical_basis(data.flatten(0, 1), 48)).predictive(2)
    exact = FIELD.predictive(np.zeros((1, 2, *FIELD.shape)))[1]
    assert abs(fitted.variance / np.diag(exact).mean() - 1) < 0.04
    assert fitted.variance > 1.2 * FIELD.spread**2
    few = second_moments(data, data, None, empirical_basis(data.flatten(0, 1), 20))
    dense = few.predictive(2)
    assert abs(dense.variance / np.diag(exact).mean() - 1) < 0.06  # what 20 EOFs leave out is in `rest`
    assert few.rest.min() > 0


def test_few_dates_give_a_better_covariance_within_dates_than_their_sample() -> None:
    """Shrinking the off-diagonal pays when there are fewer deviations than points."""
    members = torch.from_numpy(FIELD.draw(10, 3, seed=5) - FIELD.mean).float().flatten(2)
    found = second_moments(members, members, None, torch.eye(members.shape[2])).within.numpy()
    deviations = (members - members.mean(1, keepdim=True)).flatten(0, 1).numpy()
    sample, exact = deviations.T @ deviations / 20, FIELD.covariances()[1]
    np.testing.assert_allclose(np.diag(found), np.diag(sample), rtol=1e-4)
    assert np.linalg.norm(found - exact) < 0.95 * np.linalg.norm(sample - exact)


def test_error_of_the_gaussian_denoiser_is_what_it_says() -> None:
    law = exact_law().predictive(2)
    rng = torch.Generator().manual_seed(0)
    x = law.draw(torch.randn(4000, 48, generator=rng))
    sigma = torch.full((4000, 1), 0.7)
    estimate = law.posterior_mean(x + 0.7 * torch.randn(x.shape, generator=rng), sigma)
    assert abs(float((estimate - x).square().mean().sqrt()) / float(law.error(sigma)[0]) - 1) < 0.02


# --- the network ------------------------------------------------------------------------------------------------------


def network(shape: tuple[int, int], periodic: bool) -> FieldNet:
    torch.manual_seed(0)
    return FieldNet(1, 0, shape, periodic, False, widths=[8], blocks=1, features=16).eval()


@torch.no_grad()
def test_order_of_the_seeds_does_not_matter_and_a_ring_has_no_first_point() -> None:
    net = network((1, 12), True)
    identity = LinearGaussian(torch.eye(12), *(torch.eye(12) for _ in range(4)), torch.zeros(12)).predictive(3)
    seeds = torch.randn(2, 3, 1, 1, 12)
    static, mask = torch.zeros(1, 0, 1, 12), torch.ones(1, 1, 1, 12)
    scalars = scalars_of(3, False, 0.0, torch.zeros(2, 2))

    def out(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        given_ = condition(net, identity, x, scalars, static, mask)
        return SeedDenoiser(net, given_, process_for(identity))(z, torch.full((1, 1, 1, 1), 0.5))

    z = torch.randn(2, 1, 1, 12)
    torch.testing.assert_close(out(seeds[:, [2, 0, 1]], z), out(seeds, z), rtol=1e-5, atol=1e-6)
    turned = out(seeds.roll(5, -1), z.roll(5, -1))
    torch.testing.assert_close(turned, out(seeds, z).roll(5, -1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_convolution_looks_across_the_pole_and_the_date_line() -> None:
    conv = FieldConv(1, 1, (4, 8), True, True)
    conv.conv.weight.zero_()
    conv.conv.bias.zero_()  # type: ignore[union-attr]
    x = torch.randn(1, 1, 4, 8)
    conv.conv.weight[0, 0, 0, 1] = 1  # the row before
    torch.testing.assert_close(conv(x)[0, 0, 0], x[0, 0, 0].roll(4))
    conv.conv.weight.zero_()
    conv.conv.weight[0, 0, 1, 0] = 1  # the column before
    torch.testing.assert_close(conv(x), x.roll(1, -1))


# --- climatology ------------------------------------------------------------------------------------------------------


def times(count: int) -> np.ndarray:
    return (np.datetime64("2001-01-01", "ns") + np.arange(count) * np.timedelta64(5, "D"))[:, None]


def test_climatology_finds_the_annual_cycle_and_returns() -> None:
    rng = np.random.default_rng(0)
    valid = times(292)
    cycle = 8 * np.cos(2 * np.pi * np.arange(292) * 5 / 365.25)[:, None, None, None, None, None]
    data = (280 + cycle + 2 * rng.standard_normal((292, 1, 3, 1, 2, 3))).astype(np.float32)
    climate = fit_climatology(data, valid, (), torch.ones(1, 2, 3))
    assert climate.seasonal
    x = torch.from_numpy(data[:, 0])
    anomaly = climate.standardise(x, valid[:, 0], 0)
    assert abs(float(anomaly.std()) - 1) < 0.02 and abs(float(anomaly.mean())) < 0.02
    torch.testing.assert_close(climate.restore(anomaly, valid[:, 0], 0), x, rtol=1e-5, atol=1e-3)


@given(dry=st.floats(0.1, 0.8), seed=st.integers(0, 1000))
def test_rain_goes_there_and_back(dry: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.gamma(0.8, 4.0, (80, 1, 4, 1, 1, 2)) * (rng.random((80, 1, 4, 1, 1, 2)) > dry)
    data = data.astype(np.float32)
    valid = times(80)
    climate = fit_climatology(data, valid, (0,), torch.ones(1, 1, 2))
    x = torch.from_numpy(data[:, 0])
    drawn = climate.standardise(x, valid[:, 0], 0, torch.Generator().manual_seed(0))
    back = climate.restore(drawn, valid[:, 0], 0)
    assert bool((back >= 0).all()) and abs(float((back == 0).float().mean() - (x == 0).float().mean())) < 0.07
    assert float((back - x).abs().mean()) < 0.1 * float(x.mean())
    white = climate.restore(
        torch.randn(4000, 1, 1, 2, generator=torch.Generator().manual_seed(1)), np.repeat(valid[0], 4000), 0
    )
    assert bool((white >= 0).all()) and abs(float((white > 0).float().mean()) - (data > 0).mean()) < 0.08


# --- scores of the baselines ------------------------------------------------------------------------------------------


def test_crps_in_closed_form() -> None:
    y, mean, deviation = 0.7, 0.2, 1.3
    grid = np.linspace(-12, 12, 200001)
    cdf = np.vectorize(math.erf)((grid - mean) / deviation / math.sqrt(2)) / 2 + 0.5
    integral = np.trapezoid((cdf - (grid >= y)) ** 2, grid)
    one = gaussian_crps(torch.tensor(mean), torch.tensor(deviation), torch.tensor(y))
    assert abs(float(one) - integral) < 1e-4
    same = mixture_crps(torch.full((3,), mean), torch.tensor(deviation), torch.tensor(y))
    assert abs(float(same) - integral) < 1e-4
    rng = np.random.default_rng(0)
    centres = np.asarray([-1.0, 2.0])
    a, b = (centres[rng.integers(0, 2, 400000)] + 0.5 * rng.standard_normal(400000) for _ in range(2))
    sampled = np.abs(a - y).mean() - np.abs(a - b).mean() / 2
    assert abs(float(mixture_crps(torch.from_numpy(centres), torch.tensor(0.5), torch.tensor(y))) - sampled) < 5e-3


# --- test-beds --------------------------------------------------------------------------------------------------------


def test_lorenz_advection_keeps_energy_and_steps_are_of_fourth_order() -> None:
    x = np.random.default_rng(0).standard_normal((5, 40)) + 3
    advection = lorenz96(x, forcing=0.0) + x
    np.testing.assert_allclose((x * advection).sum(-1), 0, atol=1e-10)
    fine = runge_kutta(lorenz96, x, 0.0025, 40)
    errors = [np.abs(runge_kutta(lorenz96, x, 0.1 / k, k) - fine).max() for k in (2, 4)]
    assert 10 < errors[0] / errors[1] < 25
    model = TwoLevel(slow=4, fast=3)
    state = np.random.default_rng(1).standard_normal(16)
    quiet = TwoLevel(slow=4, fast=3, h=0.0, forcing=0.0)(state)
    slow, fast = state[:4], state[4:]
    np.testing.assert_allclose(fast @ (quiet[4:] + model.c * fast), 0, atol=1e-9)
    np.testing.assert_allclose(quiet[:4], lorenz96(slow, 0.0))


def test_ensembles_of_the_test_beds_are_what_they_say() -> None:
    ensemble, truth = lorenz96_ensemble(150, 6, seed=0, lead=1.0)
    error = np.sqrt(((ensemble.mean(1) - truth) ** 2).mean())
    spread = np.sqrt(7 / 6 * ensemble.var(1, ddof=1).mean())
    assert 0.75 < spread / error < 1.1  # analysis error and perturbations are alike
    wrong, right = two_level_ensemble(20, 5, seed=0)
    assert np.sqrt(6 / 5 * wrong.var(1, ddof=1).mean()) < 0.9 * np.sqrt(((wrong.mean(1) - right) ** 2).mean())
