"""Intervals, the prior's share and familiarity against closed forms and pictures that are known to be strange."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ct_runs import ct, image, record, save_prior, simulated
from scipy import stats

from suite.errors import InputError
from suite.measurement import Measurement
from suite.operators import Convolve, Diagonal, gaussian_kernel
from suite.prior import load_prior
from suite.trust import (
    Familiarity,
    calibration,
    conformal_scale,
    coverage,
    coverage_curve,
    describe,
    interval_factor,
    prior_share,
)


def draws(samples: int, spread: float, n: int = 200_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and std of `samples` draws, and a truth whose spread is `spread` times theirs."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(samples, n, generator=g)
    return x.mean(0), x.std(0), spread * torch.randn(n, generator=g)


@pytest.mark.parametrize("samples", [2, 4, 16])
def test_intervals_of_few_samples_hold_what_they_say(samples: int) -> None:
    mean, std, truth = draws(samples, 1.0)
    for level, found in coverage_curve(mean, std, truth, samples).items():
        assert found == pytest.approx(level, abs=0.005)


def test_interval_factor_of_many_samples_is_normal() -> None:
    assert interval_factor(10**6) == pytest.approx(stats.norm.ppf(0.95), rel=1e-4)
    for samples, level in ((1, 0.9), (4, 1.0), (4, 0.0)):
        with pytest.raises(InputError):
            interval_factor(samples, level)


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_conformal_scale_mends_wrong_intervals(spread: float) -> None:
    mean, std, truth = draws(16, spread)
    half = slice(0, 100_000)
    rest = slice(100_000, None)
    scale = conformal_scale(mean[half], std[half], truth[half], 16)
    assert abs(coverage(mean[rest], std[rest], truth[rest], 16) - 0.9) > 0.05
    assert coverage(mean[rest], std[rest], truth[rest], 16, scale=scale) == pytest.approx(0.9, abs=0.005)
    few = conformal_scale(mean[:5], std[:5], truth[:5], 16)  # of 5 values the largest is the best there is
    score = (truth[:5] - mean[:5]).abs() / (interval_factor(16) * std[:5])
    assert few == pytest.approx(float(score.max()), rel=1e-5)


def test_what_the_card_tells_of_intervals() -> None:
    mean, std, truth = draws(8, 2.0)
    told = calibration(mean, std, truth, 8)
    assert told["scale"] == pytest.approx(conformal_scale(mean, std, truth, 8), abs=1e-4)
    assert told["curve_before"]["0.9"] == told["coverage_before"] < 0.75
    assert told["curve"]["0.9"] == pytest.approx(0.9, abs=1e-3)
    assert list(told["curve"].values()) == sorted(told["curve"].values())
    assert told["sharpness"] == pytest.approx(float(std.mean()), abs=1e-3)


def test_share_of_a_mask_is_exact() -> None:
    """Where the data have noise s and details std t, the prior's share is s^2 / (s^2 + t^2); unmeasured, 1."""
    seen = torch.zeros(1, 1, 40, 40)
    seen[..., :20] = 1
    noise = torch.where(seen > 0, torch.tensor(0.3), torch.inf)
    share = prior_share(Measurement(Diagonal(seen), torch.zeros(1, 1, 40, 40), noise), torch.zeros(1, 1, 40, 40), 0.1)
    assert torch.allclose(share[..., 25:], torch.ones(()), atol=1e-4)
    assert torch.allclose(share[..., :15], torch.tensor(0.09 / 0.10), atol=1e-4)


def test_share_of_a_blur_is_the_diagonal_of_the_closed_form() -> None:
    op = Convolve(gaussian_kernel(1.0), (16, 16))
    measurement = Measurement(op, torch.zeros(1, 1, 16, 16), 0.05)
    matrix = op(torch.eye(256).reshape(256, 1, 16, 16)).reshape(256, 256).double()
    exact = (
        torch.linalg.inv(0.2**2 / 0.05**2 * matrix @ matrix.T + torch.eye(256, dtype=torch.float64)).diagonal().mean()
    )
    share = prior_share(measurement, torch.zeros(2, 1, 16, 16), 0.2, probes=32)
    assert float(share.mean()) == pytest.approx(float(exact), rel=0.05)
    assert torch.equal(share, prior_share(measurement, torch.zeros(2, 1, 16, 16), 0.2, probes=32))


def blobs(n: int, seed: int, sharp: float = 6.0) -> torch.Tensor:
    """Smooth discs of changing size and place in network units."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="xy")
    cx, cy, r = torch.rand(3, n, 1, 1, generator=g)
    return torch.tanh(sharp * (0.3 + 0.4 * r - torch.hypot(x - 0.4 * cx + 0.2, y - 0.4 * cy + 0.2)))[:, None]


def test_strange_pictures_are_told_from_known_ones(tmp_path: Path) -> None:
    prior = load_prior(save_prior(tmp_path / "prior.safetensors"))

    def rows(pictures: torch.Tensor) -> torch.Tensor:
        return describe(prior, pictures, pictures > -0.5)

    known = Familiarity.fit(rows(blobs(40, 0)), rows(blobs(20, 1)))
    usual = known.score(rows(blobs(40, 2)))
    assert float((usual > 1).float().mean()) < 0.25
    noise = torch.randn(10, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    for strange in (blobs(10, 4) + 0.5 * noise, noise, 3 * blobs(10, 5), blobs(10, 6, sharp=60.0)):
        assert float(known.score(rows(strange)).min()) > float(usual.median())
        assert float((known.score(rows(strange)) > 1).float().mean()) > 0.8
    one = blobs(3, 7)
    torch.testing.assert_close(rows(one)[1:2], rows(one[1:2]), rtol=1e-4, atol=1e-4)  # batch mates do not matter
    prior.statistics = known.tensors()
    prior.save(tmp_path / "with.safetensors")
    again = load_prior(tmp_path / "with.safetensors")
    kept = Familiarity.of(again)
    assert kept is not None and Familiarity.of(load_prior(tmp_path / "prior.safetensors")) is None
    torch.testing.assert_close(kept.score(rows(one)), known.score(rows(one)))
    with pytest.raises(InputError, match="at least 8"):
        Familiarity.fit(rows(one), rows(one))


def test_one_odd_training_picture_does_not_make_its_like_usual() -> None:
    g = torch.Generator().manual_seed(0)
    known, held_out, strange = (torch.randn(n, 3 + 10 + 4, generator=g) for n in (40, 20, 5))
    strange[:, 5] += 8.0
    odd = known.clone()
    odd[0, 5] = 60.0
    subjects = [str(k % 4) for k in range(40)]
    plain, widened = (Familiarity.fit(x, held_out, known_subjects=subjects).score(strange) for x in (known, odd))
    assert float(plain.min()) > 1
    torch.testing.assert_close(widened, plain, rtol=0.1, atol=0)


def test_samples_come_with_bounds_and_the_priors_share(tmp_path: Path) -> None:
    scan = simulated(tmp_path, "--slices", "0:1")
    prior = save_prior(tmp_path / "p.safetensors", calibration={"intervals": {"scale": 0.5, "data": ["somebody"]}})
    words = ("--samples", "2", "--steps", "2", "--prior", prior, "--quiet", "--dicom")
    assert ct("reconstruct", scan, "-o", tmp_path / "out", *words) == 0
    lower, mean, upper, std, share = (
        image(tmp_path / "out" / f"{name}.nii.gz") for name in ("lower", "recon", "upper", "std", "share")
    )
    half = 0.5 * interval_factor(2) * std
    np.testing.assert_allclose(upper - mean, half, atol=0.02)
    np.testing.assert_allclose(mean - lower, half, atol=0.02)
    assert share.min() >= 0 and share.max() <= 1 and 0.05 < share.mean() < 1
    told = record(tmp_path / "out")
    assert told["intervals"] == {"level": 0.9, "scale": 0.5, "calibrated_on": ["somebody"]}
    assert told["prior_share"] == pytest.approx(float(share.mean()), abs=1e-3) and not math.isnan(told["prior_share"])
