"""CT physics against closed forms and statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from domains.ct.geometry import equal_angles, fan, parallel
from domains.ct.physics import (
    MU_WATER_PER_MM,
    body_mask,
    estimate_photons,
    field_of_view_mask,
    hu_to_mu,
    leaves_field_of_view,
    log_data,
    log_weights,
    mu_to_hu,
    photon_counts,
    simulate,
    truncated_views,
)
from domains.ct.projector import Projector
from suite.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc_hu(n: int, radius: float, hu: float = 40.0, center: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    """A disc in air, `(1, n, n)`, radius and centre in pixels, its edge averaged over 4 x 4 points."""
    axis = (torch.arange(4 * n) - (4 * n - 1) / 2) / 4
    inside = torch.hypot(axis[None] - center[0], -axis[:, None] - center[1]) <= radius
    share = torch.nn.functional.avg_pool2d(inside.float()[None, None], 4)[0]
    return -1000 + (1000 + hu) * share


def test_hounsfield_units() -> None:
    assert float(hu_to_mu(torch.tensor(0.0))) == pytest.approx(MU_WATER_PER_MM)
    assert float(hu_to_mu(torch.tensor(-1000.0))) == 0.0
    hu = torch.tensor([-1000.0, -80.0, 0.0, 60.0, 1500.0])
    torch.testing.assert_close(mu_to_hu(hu_to_mu(hu, 0.019), 0.019), hu, rtol=1e-5, atol=1e-3)


def test_counts_have_the_mean_and_variance_of_their_law() -> None:
    y = torch.full((4, 50_000), 2.0)
    y[1:] = torch.tensor([4.0, 6.0, 8.0])[:, None]
    counts = photon_counts(y, 1e4, 6.0, generator())
    mean = 1e4 * torch.exp(-y[:, 0])
    variance = mean + 36
    error = (counts.mean(1) - mean) / (variance / y.shape[1]).sqrt()
    assert float(error.abs().max()) < 5
    assert float((counts.var(1) / variance - 1).abs().max()) < 5 * (2 / y.shape[1]) ** 0.5 * 1.2


def test_counts_depend_on_the_seed_only() -> None:
    y = torch.linspace(0, 5, 100)
    assert torch.equal(photon_counts(y, 1e4, 5.0, generator(0)), photon_counts(y, 1e4, 5.0, generator(0)))
    assert not torch.equal(photon_counts(y, 1e4, 5.0, generator(0)), photon_counts(y, 1e4, 5.0, generator(1)))


@pytest.mark.parametrize(("mean", "sigma"), [(10, 0), (30, 0), (1000, 0), (30, 5), (100, 10), (1000, 10)])
def test_log_data_are_unbiased_under_their_weights(mean: float, sigma: float) -> None:
    photons = 1e5
    truth = torch.full((1, 400, 500), math.log(photons / mean))
    data = log_data(photon_counts(truth, photons, sigma, generator()), photons, sigma)
    error = data.line_integrals - truth
    bias = float((data.weights * error).sum() / data.weights.sum())
    spread = float(1 / data.weights.sum().sqrt())
    assert abs(bias) < 5 * spread + 0.2 * (mean + sigma**2) / mean**2  # the plain log: 0.5, with weights -0.5
    # to second order the log's own spread adds a few per cent where electronic noise is as large as the signal
    assert float((data.weights * error**2).mean()) == pytest.approx(1, abs=0.15)
    assert float(data.weights.mean()) == pytest.approx(mean**2 / (mean + sigma**2), rel=0.05)


def test_log_data_with_photons_per_ray() -> None:
    bowtie = torch.linspace(1e3, 1e5, 64)
    truth = torch.ones(1, 3000, 64)
    data = log_data(photon_counts(truth, bowtie, 0.0, generator()), bowtie)
    assert float((data.line_integrals - truth).mean(1).abs().max()) < 5 / (1e3 * math.exp(-1) * 3000) ** 0.5
    torch.testing.assert_close(data.weights.mean((0, 1)), bowtie * math.exp(-1), rtol=0.05, atol=20)


def test_dead_and_dark_rays() -> None:
    counts = torch.full((1, 3, 32), 500.0)
    counts[0, 0, 4], counts[0, 1, :], counts[0, 2, 9] = torch.nan, -3.0, 0.0
    data = log_data(counts, 1e4, 5.0)
    assert bool(torch.isfinite(data.line_integrals).all() & torch.isfinite(data.weights).all())
    assert float(data.weights[0, 0, 4]) == 0 and bool((data.weights >= 0).all())
    assert float(data.weights[0, 1].max()) < 2
    assert float(data.line_integrals.max()) < math.log(1e4) + 2


@pytest.mark.parametrize("photons", [1e4, 1e5])
def test_unknown_noise_is_found_in_the_data(photons: float) -> None:
    geometry = parallel(equal_angles(40), (96, 96), 3.0)
    clean = simulate(disc_hu(96, 40), 3.0, geometry, photons=None)
    noisy = log_data(photon_counts(clean, photons, 0.0, generator()), photons).line_integrals
    assert float(estimate_photons(noisy)) == pytest.approx(photons, rel=0.3)
    estimated = log_weights(noisy, estimate_photons(noisy))
    chi2 = (estimated * (noisy - clean) ** 2)[clean > 0.5].mean()
    assert float(chi2) == pytest.approx(1, abs=0.3)
    assert float(estimate_photons(clean)) > 5 * photons


def test_simulated_noise_has_unit_chi_square() -> None:
    geometry = fan(equal_angles(30, 360), (64, 64), 4.0, source_origin_mm=500, origin_detector_mm=400)
    volume = disc_hu(64, 24).repeat(3, 1, 1)
    clean = simulate(volume, 4.0, geometry, photons=None)
    torch.testing.assert_close(clean, Projector(geometry)(hu_to_mu(volume)[:, None]))
    counts = simulate(volume, 4.0, geometry, photons=1e5, electronic_sigma=5.0, generator=generator())
    data = log_data(counts, 1e5, 5.0)
    assert float((data.weights * (data.line_integrals - clean) ** 2).mean()) == pytest.approx(1, abs=0.05)


def test_finer_simulation_approaches_the_closed_form() -> None:
    """Bin means of exp(-chord) of a disc, by quadrature, against grids of 2 mm and 0.5 mm."""
    geometry = parallel(equal_angles(12), (64, 64), 2.0)
    sub = (geometry.bin_positions[:, None] + (np.arange(64) - 31.5) / 64 * 2.0).clip(-40, 40)
    chord = 2 * MU_WATER_PER_MM * 1.04 * np.sqrt(40.0**2 - sub**2)
    exact = torch.tensor(-np.log(np.exp(-chord).mean(1)), dtype=torch.float32)

    def error(y: torch.Tensor) -> float:
        return float(torch.linalg.norm(y - exact) / torch.linalg.norm(exact.expand_as(y)))

    coarse = simulate(disc_hu(64, 20), 2.0, geometry, photons=None)
    fine = simulate(disc_hu(256, 80), 0.5, geometry, photons=None, rays_per_bin=4)
    assert error(fine) < 0.003
    assert error(coarse) > 2 * error(fine)


def test_body_mask_keeps_the_largest_piece_and_fills_it() -> None:
    image = disc_hu(100, 30)[0]
    lung = disc_hu(100, 8, center=(10, 0))[0] > -999
    image[lung] = -850
    image[90:92, :] = 300  # a table: too thin
    image[5:12, 5:12] = 50  # something beside the body
    mask = body_mask(image.numpy())
    expected = disc_hu(100, 30)[0].numpy() > -400
    assert np.count_nonzero(mask != expected) < 0.01 * expected.sum()
    assert not body_mask(np.full((20, 20), -1000.0)).any()
    assert not body_mask(np.full((20, 20), np.nan)).any()


def test_field_of_view_and_truncation() -> None:
    wide = parallel(equal_angles(20), (80, 80), 2.0)
    narrow = parallel(equal_angles(20), (80, 80), 2.0, n_bins=50)
    assert field_of_view_mask(wide).all()
    assert field_of_view_mask(narrow).sum() == pytest.approx(math.pi * 25**2, rel=0.02)
    small, large = disc_hu(80, 20), disc_hu(80, 35)
    assert not leaves_field_of_view(small.numpy(), narrow)
    assert leaves_field_of_view(large.numpy(), narrow)
    for volume, geometry, share in ((small, narrow, 0.0), (large, narrow, 1.0), (large, wide, 0.0)):
        assert truncated_views(simulate(volume, 2.0, geometry, photons=None)) == share
    noisy = simulate(large, 2.0, wide, photons=1e3, generator=generator())
    assert truncated_views(log_data(noisy, 1e3).line_integrals, noise_sigma=1e3**-0.5) < 0.05


def test_impossible_settings_are_refused() -> None:
    y, geometry = torch.zeros(1, 4), parallel([0.0], (8, 8))
    for bad in (
        lambda: photon_counts(y, 0.0, 0.0, generator()),
        lambda: photon_counts(y, math.nan, 0.0, generator()),
        lambda: photon_counts(y, 1e4, -1.0, generator()),
        lambda: estimate_photons(torch.zeros(1, 3, 4)),
        lambda: simulate(disc_hu(8, 2), 1.0, geometry, photons=1e4),
        lambda: simulate(disc_hu(8, 2), 1.0, geometry, photons=None, rays_per_bin=0),
    ):
        with pytest.raises(InputError):
            bad()
