"""What was added to the weather domain part by part: dry points, evidence, methods, refinement, the QG test-bed, diagrams."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from domains.weather.climate import fit_climatology
from domains.weather.denoiser import Condition, SeedDenoiser, process_for
from domains.weather.diagrams import murphy, reliability, spread_error
from domains.weather.dry import continue_below
from domains.weather.evidence import trusted
from domains.weather.hierarchy import LinearGaussian, empirical_basis, second_moments
from domains.weather.methods import Case, baseline_members
from domains.weather.physics import GaussianField
from domains.weather.quasigeostrophic import QuasiGeostrophic, quasigeostrophic_ensemble
from domains.weather.refinement import refined
from domains.weather.training_set import TrainingSet
from suite.chart import Chart, Series, to_svg

FIELD = GaussianField()


# --- rain -------------------------------------------------------------------------------------------------------------


def correlated(dates: int, members: int, side: int, seed: int) -> torch.Tensor:
    """Standard normal fields `(D, M, 1, n, n)` with correlation `exp(-distance / 3)`."""
    rows, columns = np.divmod(np.arange(side * side), side)
    distance = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    root = torch.from_numpy(np.linalg.cholesky(np.exp(-distance / 3) + 1e-9 * np.eye(side * side))).float()
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(dates, members, side * side, generator=rng) @ root.T).reshape(dates, members, 1, side, side)


def test_dry_points_continue_the_field_and_keep_their_distribution() -> None:
    truth = correlated(300, 2, 6, seed=0)
    limit = torch.full((300, 1, 6, 6), 0.3)
    dry = truth < 0.3
    rng = torch.Generator().manual_seed(1)
    share = torch.special.ndtr(torch.tensor(0.3))
    alone = torch.where(dry, torch.special.ndtri(share * torch.rand(truth.shape, generator=rng)), truth)
    drawn = continue_below(alone, dry, limit, 300, rng, periodic=False)

    def beside(x: torch.Tensor) -> float:
        return float((x[..., 1:] * x[..., :-1]).mean())

    exact = math.exp(-1 / 3)
    assert beside(alone) < 0.75 * exact and abs(beside(drawn) - exact) < 0.06
    assert bool((drawn[dry] <= 0.3).all()) and bool((drawn[~dry] == truth[~dry]).all())
    assert abs(float(drawn.std() - truth.std())) < 0.03 and abs(float(drawn.mean() - truth.mean())) < 0.03


def test_dry_share_is_exact() -> None:
    """The share of zeros of generated rain is that of the data to sampling error, whatever lies between stored quantiles."""
    rng = np.random.default_rng(0)
    data = (rng.gamma(0.7, 3, (400, 1, 5, 1, 1, 1)) * (rng.random((400, 1, 5, 1, 1, 1)) > 0.37)).astype(np.float32)
    valid = (np.datetime64("2001-01-01", "ns") + np.arange(400) * np.timedelta64(1, "D"))[:, None]
    climate = fit_climatology(data, valid, (0,), torch.ones(1, 1, 1))
    white = torch.special.ndtri((torch.arange(20000) + 0.5) / 20000).reshape(-1, 1, 1, 1)
    back = climate.restore(white, np.repeat(valid[0], 20000), 0)
    assert abs(float((back == 0).float().mean()) - float((data == 0).mean())) < 0.012
    for threshold in (0.5, 3.0):
        assert abs(float((back > threshold).float().mean()) - float((data > threshold).mean())) < 0.012


# --- evidence ---------------------------------------------------------------------------------------------------------


def training_set(fields: torch.Tensor) -> TrainingSet:
    x = fields[None]  # one lead
    return TrainingSet(x, x, None, torch.zeros(len(fields), 2), False, False)


@pytest.mark.parametrize(("signal", "informative"), [(0.0, False), (1.0, True)])
def test_seeds_without_information_are_found_out(signal: float, informative: bool) -> None:
    shared, own = correlated(160, 1, 5, seed=2), correlated(160, 4, 5, seed=3)
    data = training_set(signal * shared + own)
    flat = data.targets[0].flatten(2)
    basis = empirical_basis(flat.flatten(0, 1), 25)
    law = second_moments(flat, flat, None, basis)
    laws, known = trusted({(0, "member"): law}, data)
    assert known == {"member": [informative]}
    mean = laws[0, "member"].predictive(2).mean(flat[:, :2].mean(1))
    assert (float(mean.square().mean()) > 0.2) == informative
    if not informative:
        assert float(mean.abs().max()) == 0


# --- methods ----------------------------------------------------------------------------------------------------------


def exact_law() -> LinearGaussian:
    B, W = (torch.from_numpy(c).float() for c in FIELD.covariances())
    return LinearGaussian(torch.eye(len(B)), B, W, B, B + W, torch.zeros(len(B)))


def test_ecc_takes_the_order_of_the_seeds() -> None:
    seeds = torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    parameters = {"emos.0.member.3": torch.stack([torch.zeros(1, 4, 5)] * 4)}
    case = Case(seeds, torch.tensor([0.0, 1.0]), 0, "member", "2001")
    law = exact_law().predictive(3)
    numbers = list(range(9))
    out = baseline_members("ecc", case, torch.zeros(9, 1, 4, 5), numbers, law, parameters, (seeds, torch.zeros(3, 2)))
    for block in out.split(3):
        torch.testing.assert_close(block.argsort(0), seeds.argsort(0))
    assert not torch.equal(out[:3], out[3:6])
    alone = baseline_members("ecc", case, torch.zeros(1, 1, 4, 5), [4], law, parameters, (seeds, torch.zeros(3, 2)))
    torch.testing.assert_close(alone[0], out[4])


def test_best_member_dressing_adds_whole_errors() -> None:
    seeds = torch.zeros(2, 1, 2, 2)
    errors = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 2, 2)
    case = Case(seeds, torch.tensor([0.0, 1.0]), 0, "member", "2001")
    words = (exact_law().predictive(2), {"errors.0.member.2": errors}, (seeds, torch.zeros(2, 2)), "best-member")
    out = baseline_members("dressing", case, torch.zeros(6, 1, 2, 2), list(range(6)), *words)
    assert sorted(out[:, 0, 0, 0].tolist()) == list(range(6)) and bool((out == out[:, :, :1, :1]).all())


def test_refinement_leaves_a_gaussian_law_as_it_is() -> None:
    law = exact_law().predictive(2)
    shape = (6000, 1, *FIELD.shape)
    nothing = torch.zeros(shape)
    denoiser = SeedDenoiser(
        None, Condition(law, nothing, nothing, nothing, torch.ones(1, 1, *FIELD.shape)), process_for(law)
    )
    rng = torch.Generator().manual_seed(0)
    start, *noises = (torch.randn(shape, generator=rng) for _ in range(7))
    out = refined(denoiser, start, noises).flatten(1)
    covariance = torch.from_numpy(FIELD.predictive(np.zeros((1, 2, *FIELD.shape)))[1]).float()
    assert denoiser.evaluations == 3
    assert torch.linalg.norm(out.T @ out / len(out) - covariance) / torch.linalg.norm(covariance) < 0.06
    assert abs(float(torch.diagonal(out.T @ out / len(out)).mean() / torch.diagonal(covariance).mean()) - 1) < 0.02


# --- quasi-geostrophic test-bed ---------------------------------------------------------------------------------------


def test_waves_grow_as_linear_theory_says() -> None:
    """Phillips' instability without beta and drag: growth `U k sqrt((k_d^2 - k^2)/(k_d^2 + k^2))` (Vallis 2017, eq. 9.84)."""
    model = QuasiGeostrophic(points=16, deformation=4.0, beta=0.0, drag=0.0, filtered=False, dt=0.01)
    psi = torch.zeros(2, 16, 9, dtype=torch.complex64)
    psi[0, 0, 2], psi[1, 0, 2] = 1e-3, 5e-4j
    q = model.vorticity(psi)
    torch.testing.assert_close(model.streamfunction(q), psi, atol=1e-9, rtol=1e-5)
    q = model.run(q, 3.0)
    rate = float((model.run(q, 0.5)[0, 0, 2].abs() / q[0, 0, 2].abs()).log() / 0.5)
    assert abs(rate / (2 * math.sqrt((16 - 4) / (16 + 4))) - 1) < 0.01


def test_energy_is_kept_without_shear_and_drag() -> None:
    model = QuasiGeostrophic(points=16, U=0.0, beta=3.0, drag=0.0, deformation=4.0, filtered=False, dt=0.005)
    psi = torch.zeros(2, 16, 9, dtype=torch.complex64)
    psi[:, :4, :4] = 2 * torch.randn(2, 4, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    q = torch.fft.rfft2(torch.fft.irfft2(model.vorticity(psi), s=(16, 16)))
    later = model.run(q, 0.2)
    assert float((later - q).abs().max()) > 1e-3 * float(q.abs().max())
    assert abs(float(model.energy(later) / model.energy(q)) - 1) < 1e-4


def test_members_of_the_flow_drift_apart() -> None:
    model = QuasiGeostrophic(points=16, deformation=4.0, beta=4.0, dt=0.01)
    early, _ = quasigeostrophic_ensemble(3, 4, 0, model=model, lead=0.0, spin_up=6.0)
    late, truth = quasigeostrophic_ensemble(3, 4, 0, model=model, lead=2.0, spin_up=6.0)
    assert late.shape == (3, 4, 2, 16, 16) and truth.shape == (3, 2, 16, 16) and np.isfinite(late).all()
    assert (late.std(1) / truth.std()).mean() > 1.2 * (early.std(1) / truth.std()).mean()


# --- diagrams ---------------------------------------------------------------------------------------------------------


def test_reliability_and_murphy_sum_to_the_brier_score() -> None:
    rng = np.random.default_rng(0)
    chance = rng.integers(0, 11, (40, 7)) / 10
    event, weights = rng.random((40, 7)) < chance, rng.random(7) + 0.5
    parts = reliability(chance, event, weights).sum(0)
    first, second = murphy(parts)
    mean = parts[2].sum() / parts[0].sum()
    brier = ((chance - event) ** 2 * weights).sum() / (40 * weights.sum())
    assert abs(first - second + mean * (1 - mean) - brier) < 1e-12 and first < 0.02 < second
    binned = spread_error(np.full((2, 3), 4.0), np.full((2, 3), 3.0), np.full(3, 2.0), np.ones(3)).sum(0)
    assert binned[0].max() == 6 and binned[1].sum() == 6 * 1 and binned[2].sum() == pytest.approx(6 * 9 / 4)


def test_charts_are_well_formed_and_leave_out_what_cannot_be_drawn() -> None:
    from xml.etree import ElementTree

    series = [Series("a < b", [0, 1, 10], [1, math.nan, 100]), Series("", [1, 10], [1, 10], "bars")]
    svg = to_svg(Chart("t & u", "x", "y", series, log="xy"))
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and "a &lt; b" in svg and "nan" not in svg
    with pytest.raises(ValueError, match="no point"):
        to_svg(Chart("t", "x", "y", [Series("", [0], [0])], log="x"))
