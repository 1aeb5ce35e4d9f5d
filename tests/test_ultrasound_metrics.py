"""Ultrasound figures against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from domains.ultrasound import metrics


def test_gcnr_by_hand() -> None:
    assert metrics.gcnr(np.array([0.0, 1, 2, 3]), np.array([4.0, 5, 6, 7])) == 1  # apart
    assert metrics.gcnr(np.arange(8.0), np.arange(8.0)) == 0  # alike
    a, b = np.array([0.0, 0, 10, 10]), np.array([10.0, 10, 20, 20])  # half of each in one common bin
    assert metrics.gcnr(a, b) == pytest.approx(0.5)
    assert metrics.gcnr(np.ones(3), np.ones(5)) == 0
    unlike = np.array([0.0, 0, 0, 10]), np.array([10.0, 20])  # sizes do not matter: min(1/4, 1/2)
    assert metrics.gcnr(*unlike) == pytest.approx(0.75)


def test_gcnr_knows_no_monotone_map() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 400).astype(float), rng.integers(2, 6, 400).astype(float)
    assert metrics.gcnr(a, b) == pytest.approx(metrics.gcnr(3 * a + 1, 3 * b + 1))


def test_cnr_by_hand() -> None:
    assert metrics.cnr(np.array([4.0, 6]), np.array([1.0, 3])) == pytest.approx(3 / np.sqrt(2))
    assert metrics.cnr(np.array([1.0, 3]), np.array([4.0, 6])) == pytest.approx(-3 / np.sqrt(2))


def test_ks_by_hand() -> None:
    assert metrics.ks(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])) == pytest.approx(0.5)
    assert metrics.ks(np.arange(5.0), np.arange(5.0)) == 0
    assert metrics.ks(np.zeros((2, 2)), np.ones((2, 2))) == 1


def test_speckle_snr_of_rayleigh_and_of_its_mean() -> None:
    rng = np.random.default_rng(0)
    envelope = np.abs(rng.normal(size=200_000) + 1j * rng.normal(size=200_000))
    assert metrics.speckle_snr(envelope) == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.01)  # 1.91
    smooth = envelope.reshape(-1, 4).mean(1)
    assert metrics.speckle_snr(smooth) == pytest.approx(2 * 1.91, rel=0.02)


def test_speckle_width_of_a_known_correlation() -> None:
    """White noise through a box of n samples has a triangular correlation, of full width n at half height."""
    rng = np.random.default_rng(0)
    white = rng.normal(size=(200, 400))
    for n in (4, 9):
        box = np.apply_along_axis(lambda line, n=n: np.convolve(line, np.ones(n), "valid"), 1, white)
        assert metrics.speckle_width(box, 1) == pytest.approx(n, rel=0.05)
        assert metrics.speckle_width(box, 0) < 2
    assert np.isnan(metrics.speckle_width(np.ones((4, 4)), 0))


def test_psnr_and_mae_by_hand() -> None:
    truth = np.zeros((2, 2, 2))
    x = truth.copy()
    x[0, 0, 0], x[1, 0, 0], x[:, 1, 1] = 8, 2, 100  # the last lies outside
    mask = np.array([[True, True], [False, False]])
    expected = np.mean([10 * np.log10(255**2 / 32), 10 * np.log10(255**2 / 2)])
    assert metrics.psnr(x, truth, mask) == pytest.approx(expected)
    assert metrics.mae(x, truth, mask) == pytest.approx(10 / 4)


def test_temporal_figures_by_hand() -> None:
    truth = np.zeros((3, 1, 2))
    x = np.array([[[1.0, 1]], [[3, 3]], [[2, 0]]])  # S = 2, 6, 2
    mask = np.ones((1, 2), bool)
    assert metrics.temporal_coherency(x, truth) == 4
    assert metrics.flicker(x, mask) == pytest.approx((4 + 4 + 1 + 9) / 4)
    assert metrics.flicker_ratio(x / 2, x, mask) == pytest.approx(0.25)
    assert metrics.flicker_ratio(x[:1], x[:1], mask) is None
    assert metrics.temporal_coherency(x[:1], truth[:1]) == 0


def test_challenge_score_by_hand() -> None:
    best = {"fid": 60.0, "cnr": 1.5, "gcnr": 0.8, "ks_a": 0.1, "ks_b": 0.5, "dice": 0.95, "asd": 0.7}
    assert metrics.challenge_score(best) == {"score": pytest.approx(100), "weight_known": 1.0}
    some = {"cnr": 1.25, "gcnr": 0.5, "ks_a": 0.2, "ks_b": 0.9}  # (0.5 + 0)/2 with weight 5, (0.5 + 1)/2 with weight 3
    assert metrics.challenge_score(some) == {
        "score": pytest.approx(100 * (5 * 0.25 + 3 * 0.75) / 8),
        "weight_known": 0.8,
    }
    assert metrics.challenge_score({"fid": 500.0})["score"] == 0


def test_figures_beside_truth_and_input() -> None:
    truth = np.full((2, 4, 4), 50.0)
    before = truth.copy()
    before[:, 0] = 150  # haze
    x = before.copy()
    x[:, 0], x[:, 1] = 60, 49
    sector = np.ones((4, 4), bool)
    found = metrics.against_reference(x, truth, before, sector)
    assert found["change_outside"] == pytest.approx(1 / 3)  # one of three rows without haze changed by 1
    assert found["psnr_gain"] == pytest.approx(found["psnr"] - found["psnr_input"])  # type: ignore[operator]
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / ((100 + 1) / 4)))
    alone = metrics.against_input(x, before, sector)
    assert alone["haze_share"] == 0.25 and alone["change_elsewhere"] == pytest.approx(1 / 3)
    assert alone["mean_change"] == pytest.approx((90 + 1) / 4)


def test_regions() -> None:
    a, b = np.zeros((1, 4, 4), bool), np.zeros((1, 4, 4), bool)
    a[0, :2], b[0, 2:] = True, True
    before = np.where(a, 100.0, 50.0) + np.arange(16.0).reshape(1, 4, 4) % 4
    found = metrics.by_region(np.where(b, before - 40, before), before, a, b)
    assert (found["ks_a"], found["ks_b"]) == (0, 1)
    assert found["cnr"] > found["cnr_input"] > 0  # type: ignore[operator]
    assert found["gcnr"] == found["gcnr_input"] == 1
