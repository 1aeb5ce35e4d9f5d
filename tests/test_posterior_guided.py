"""One evaluation or one step of the guided posterior methods against a dense computation of their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from posterior_cases import Case, numeric_gradient, r2, step_knots
from torch import Tensor
from torch.testing import assert_close

from suite.linalg import dot
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import FFT, Compose, LinearOperator, Subsample, ToComplex
from suite.posterior.base import Guided
from suite.posterior.data_step import DataStep
from suite.posterior.ddnm import DDNM, DDNMPlus
from suite.posterior.ddrm import DDRM
from suite.posterior.dds import DDS
from suite.posterior.diffpir import DiffPIR
from suite.posterior.dps import DPS
from suite.posterior.mmps import MMPS
from suite.posterior.pigdm import PiGDM
from suite.posterior.smc import bridge
from suite.posterior.stsl import STSL
from suite.stepping import Model

OPERATORS = ("mask", "blur", "ct", "mri")


def guide(method: Guided, case: Case, seed: int = 0) -> Any:
    return method.guide(case.prior, case.measurement, Noise.of(seed))


def fourier_mask() -> LinearOperator:
    """Half the spectrum of a two-channel image: complex data, and a singular value decomposition."""
    lines = torch.tensor([True, False, True, False])[:, None].expand(4, 4)
    return Compose(Subsample(lines), FFT((-2, -1)), ToComplex())


# --- guides that are exact for some priors -----------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["vp", "edm", "ir-sde", "resfusion"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_pigdm_is_the_posterior_mean_for_white_data(operator: str, process: str) -> None:
    case = Case("white", operator, process, uneven=True)
    pigdm = guide(PiGDM(iterations=300, tolerance=1e-12), case)
    for t in (1.0, 0.6, 0.2):  # with resfusion alpha = 0 at the first
        x = case.state(t)
        assert_close(pigdm(x, case.time(t), case.y), case.posterior_mean(x, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("process", ["vp", "edm", "ir-sde", "resshift"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_mmps_is_the_posterior_mean_for_any_gaussian(operator: str, process: str) -> None:
    case = Case("correlated", operator, process, uneven=True)
    mmps = guide(MMPS(iterations=300, tolerance=1e-12), case)
    for t in (0.9, 0.5, 0.2):  # one guide: its warm start must not show
        x = case.state(t)
        assert_close(mmps(x, case.time(t), case.y), case.posterior_mean(x, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [DPS(), STSL()], ids=["dps", "stsl"])
@pytest.mark.parametrize("process", ["vp", "resfusion"])
def test_dps_and_stsl_are_exact_for_white_data_under_a_mask(method: Guided, process: str) -> None:
    case = Case("white", "mask", process)
    for t in (1.0, 0.5):
        x = case.state(t)
        assert_close(guide(method, case)(x, case.time(t), case.y), case.posterior_mean(x, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [DPS(), STSL()], ids=["dps", "stsl"])
def test_dps_and_stsl_are_exact_for_white_data_under_a_fourier_mask(method: Guided) -> None:
    case = Case("white", "mri")  # for its two channels
    A = fourier_mask()
    y = A(case.state(0.1))
    case.measurement = Measurement(A, y, 0.3)
    x, t = case.state(0.6), case.time(0.6)
    mean = case.prior(x, t)
    expected = mean + r2(case, 0.6) / (r2(case, 0.6) + 0.3**2) * A.adjoint(y - A(mean))
    assert_close(guide(method, case)(x, t), expected)


# --- gradients through the network -------------------------------------------------------------------------------------


def one_item(operator: str, **options: Any) -> tuple[Case, Tensor, Tensor, float]:
    """A case with one truth, a state at t = 0.6, that time, and `sigma^2 / alpha` there."""
    case = Case("mixture", operator, truths=1, **options)
    t = case.time(0.6)
    process = case.problem.dynamics
    return case, case.state(0.6), t, float(process.sigma(t) ** 2 / process.alpha(t))


@pytest.mark.parametrize("operator", ["ct", "mri"])
def test_dps_adds_the_gradient_of_the_log_likelihood(operator: str) -> None:
    case, x, t, scale = one_item(operator)
    mean = case.prior(x, t)
    slope = numeric_gradient(lambda v: -case.measurement.negative_log_likelihood(case.prior(v, t)), x)
    pull = case.measurement.gradient(mean)
    gain = dot(pull, pull) / (2 * case.measurement.negative_log_likelihood(mean))
    weight = 0.7 / (1 + r2(case, 0.6) * float(gain))
    assert_close(guide(DPS(strength=0.7), case)(x, t), mean + weight * scale * slope, rtol=1e-5, atol=1e-7)


def test_dps_takes_operators_that_are_not_linear() -> None:
    case, x, t, scale = one_item("ct")
    matrix = case.matrix

    def log(v: Tensor) -> Tensor:
        return 3 * torch.tanh(v.flatten(1) @ matrix.T / 3)

    case.measurement = Measurement(log, log(case.state(0.1)), 0.5, linear=False)
    mean = case.prior(x, t)
    loss = case.measurement.negative_log_likelihood
    slope, pull = numeric_gradient(lambda v: -loss(case.prior(v, t)), x), numeric_gradient(loss, mean)
    weight = 1 / (1 + r2(case, 0.6) * float(dot(pull, pull) / (2 * loss(mean))))
    assert_close(guide(DPS(), case)(x, t), mean + weight * scale * slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("operator", ["ct", "mri"])
def test_the_norm_form_of_dps_steps_down_the_norm_of_the_misfit(operator: str) -> None:
    case, x, _, _ = one_item(operator)
    t, s = step_knots(case, 0.6, 0.5)

    def norm(v: Tensor) -> Tensor:
        gap = case.measurement.operator(case.prior(v, t.time)) - case.data
        return dot(gap, gap).sqrt()

    denoiser = guide(DPS(0.5, form="norm"), case)
    solver = DPS(0.5, form="norm").stepper(denoiser, case.measurement)
    mean, eps = denoiser.predict(x, t.time)
    found, _ = solver.step(Model(denoiser, noise=Noise.of(7)), x, mean, eps, t, s, [])
    a, b, v = bridge(case.problem.dynamics, t.time, s.time)  # DDPM's own step
    ancestral = a * x + b * case.prior(x, t.time) + v * Noise.of(7).normal(x)
    assert_close(found, ancestral - 0.5 * numeric_gradient(norm, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operator", ["ct", "mri"])
def test_stsl_follows_the_gradient_of_its_surrogate(operator: str) -> None:
    """The surrogate from dense covariances, differentiated numerically, at the same probe."""
    case, x, t, scale = one_item(operator)
    B = case.matrix / case.problem.sigma
    y = case.vectors / case.problem.sigma
    draw = Noise.of(5).normal(case.data)
    e = (torch.view_as_real(draw) if draw.is_complex() else draw).flatten().sign()

    def surrogate(v: Tensor) -> Tensor:
        g = y - case.prior(v, t).flatten(1) @ B.T
        seen = B @ case.prior.covariance(v, t) @ B.T  # type: ignore[attr-defined]
        return -(g.square().sum(1) + torch.einsum("i,bij,j->b", e, seen, e)) / 2

    mean = case.prior(x, t)
    g = (y - mean.flatten(1) @ B.T)[0]
    V = case.prior.covariance(x, t)[0]  # type: ignore[attr-defined]
    weight = 1 / (1 + float(g @ B @ V @ B.T @ g / (g @ g)))
    expected = mean + weight * scale * numeric_gradient(surrogate, x)
    assert_close(guide(STSL(), case, seed=5)(x, t), expected, rtol=1e-4, atol=1e-6)


def test_the_probe_of_stsl_leaves_out_data_that_do_not_count() -> None:
    case = Case("mixture", "ct", truths=1)
    std = torch.full_like(case.data, case.problem.sigma)
    std[:, ::3] = math.inf
    case.measurement = Measurement(case.problem.linear, case.data, std)
    signs = guide(STSL(), case).signs(case.data)
    assert bool((signs[:, ::3] == 0).all())
    assert bool((signs[:, 1::3].abs() == 1).all())


# --- data steps without a gradient -------------------------------------------------------------------------------------


def dense_proximal(case: Case, v: Tensor, weight: float) -> Tensor:
    """`argmin weight |W (A x - y)|^2 + |x - v|^2`."""
    scaled = weight * case.matrix.T / case.variances
    system = scaled @ case.matrix + torch.eye(len(scaled), dtype=torch.float64)
    return torch.linalg.solve(system, (case.vectors @ scaled.T + v.flatten(1)).T).T.reshape(v.shape)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_data_step_of_dds_is_the_dense_solve(operator: str) -> None:
    case = Case("mixture", operator, "ir-sde", uneven=True)
    x, t = case.state(0.5), case.time(0.5)
    mean, eps = case.prior.predict(x, t, case.y)
    for options, weight in [({"strength": 3.0}, 3 * r2(case, 0.5)), ({"gamma": 0.2}, 0.2)]:
        found, noise = guide(DDS(iterations=200, tolerance=1e-12, **options), case).predict(x, t, case.y)
        assert_close(found, dense_proximal(case, mean, weight), rtol=0, atol=1e-6)
        assert_close(noise, eps)  # of the network, before the data


def test_one_iteration_of_dds_is_one_step_of_steepest_descent() -> None:
    case = Case("mixture", "ct", truths=1)
    x, t, gamma = case.state(0.5), case.time(0.5), r2(case, 0.5)
    mean = case.prior(x, t)
    system = case.matrix.T @ case.matrix / case.problem.sigma**2 + torch.eye(16, dtype=torch.float64) / gamma
    down = -case.measurement.gradient(mean).flatten()
    step = float(down @ down / (down @ system @ down))
    assert_close(guide(DDS(iterations=1), case)(x, t), mean + step * down.reshape(mean.shape))


def test_the_data_step_goes_on_from_its_last_answer() -> None:
    case = Case("mixture", "ct", truths=1)
    v, step = case.state(0.3), DataStep(case.measurement, iterations=3, tolerance=0.0)
    exact = dense_proximal(case, v, 0.5)
    errors = [float((step(v, torch.tensor(0.5)) - exact).abs().max()) for _ in range(8)]
    assert errors[-1] < 1e-3 * errors[0]


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_proximal_step_of_diffpir_is_the_dense_solve(operator: str) -> None:
    case = Case("mixture", operator, "ir-sde", uneven=True)
    x, t = case.state(0.5), case.time(0.5)
    process = case.problem.dynamics
    q2 = float(process.sigma(t) / process.alpha(t)) ** 2
    found, eps = guide(DiffPIR(weight=4.0, iterations=200, tolerance=1e-12), case).predict(x, t, case.y)
    assert_close(found, dense_proximal(case, case.prior(x, t, case.y), q2 / 4), rtol=0, atol=1e-6)
    assert_close(process.marginal(found, t, eps, case.y), x)  # eps^ is what is left of x_t


@pytest.mark.parametrize("operator", ["mask", "ct", "mri"])
def test_ddnm_takes_the_range_from_the_data_and_the_null_space_from_the_prior(operator: str) -> None:
    case = Case("mixture", operator, "vp", noise=0.0)
    x, t = case.state(0.5), case.time(0.5)
    mean = case.prior(x, t).flatten(1)
    found = guide(DDNM(iterations=60), case)(x, t)
    expected = mean - (mean @ case.matrix.T - case.vectors) @ torch.linalg.pinv(case.matrix).T
    assert_close(found, expected.reshape(x.shape), rtol=0, atol=1e-5)
    assert case.measurement.residual(found).abs().max() < 1e-5


# --- steps in the spectral space of the operator -----------------------------------------------------------------------


def spectral(case: Case) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """`(V^H, s, U^H W y)` of the whitened operator, s padded to the domain, one column of data for each truth."""
    weight = 1 / np.sqrt(case.variances.numpy())[:, None]
    u, s, vh = np.linalg.svd(weight * case.matrix.numpy())
    full = np.zeros(len(vh))
    full[: len(s)] = np.where(s > 1e-6 * s.max(), s, 0)
    data = np.zeros((len(vh), case.truths))
    data[: len(s)] = (u.T @ (weight * case.vectors.numpy().T))[: len(s)]
    return vh, full[:, None], data


def one_step(method: Guided, case: Case, t: float, s: float) -> tuple[Tensor, Any, Any, Any, float, float]:
    """One step of the method's own solver: the new state, and D, eps, fresh noise (columns), alpha_s, sigma_s."""
    start, end = step_knots(case, t, s)
    z = case.problem.dynamics.shift(case.state(t), start.time, case.y)
    model = Model(case.prior, case.y, Noise.of(3))
    mean, eps = model(z, start)
    new, _ = method.stepper(case.prior, case.measurement).step(model, z, mean, eps, start, end, [])
    d, e, fresh = (v.flatten(1).numpy().T for v in (mean, eps, Noise.of(3).normal(z)))
    return new, d, e, fresh, float(end.alpha), float(end.sigma)


@pytest.mark.parametrize("process", ["vp", "resshift"])
@pytest.mark.parametrize("operator", ["mask", "blur", "ct"])
def test_a_step_of_ddrm_is_the_papers_update(operator: str, process: str) -> None:
    case = Case("mixture", operator, process)
    eta, eta_b, regimes = 0.6, 0.8, set()
    for t, s in [(0.9, 0.8), (0.3, 0.2), (0.03, 0.01)]:
        new, mean, eps, fresh, alpha, sigma = one_step(DDRM(eta, eta_b), case, t, s)
        vh, gain, data = spectral(case)
        q, D, seen = sigma / alpha, vh @ mean, gain > 0
        n = 1 / np.where(seen, gain, 1)
        y = data * n
        kept, xi = math.sqrt(1 - eta**2), vh @ fresh
        unseen = D + kept * q * (vh @ eps) + eta * q * xi
        below = D + kept * q * (y - D) / n + eta * q * xi
        above = (1 - eta_b) * D + eta_b * y + np.sqrt(np.maximum(q**2 - eta_b**2 * n**2, 0)) * xi
        expected = alpha * vh.T @ np.where(seen, np.where(q >= n, above, below), unseen)
        np.testing.assert_allclose(new.flatten(1).numpy().T, expected, atol=1e-5)
        regimes |= {name for name, some in [("above", q >= n), ("below", q < n)] if (seen & some).any()}
    assert regimes == {"above", "below"}


@pytest.mark.parametrize("operator", ["mask", "ct", "mri"])  # the last by Lanczos' method
def test_a_step_of_ddnm_plus_is_the_papers_update(operator: str) -> None:
    case = Case("mixture", operator, "vp", noise=0.3)
    eta = 0.6
    for t, s in [(0.9, 0.8), (0.3, 0.2), (0.03, 0.01)]:
        new, mean, eps, fresh, alpha, sigma = one_step(DDNMPlus(eta, iterations=60), case, t, s)
        vh, gain, data = spectral(case)
        seen, root = gain > 0, np.where(gain > 0, gain, 1)
        reach = root * sigma / alpha
        share = np.where(reach >= 1, 1, math.sqrt(1 - eta**2) * reach)
        D = vh @ mean
        D = np.where(seen, D - share * (D - data / root), D)
        left = np.where(seen, np.maximum(sigma**2 - (alpha * share / root) ** 2, 0), sigma**2)
        expected = vh.T @ (alpha * D + np.sqrt(left) * (vh @ (math.sqrt(1 - eta**2) * eps + eta * fresh)))
        np.testing.assert_allclose(new.flatten(1).numpy().T, expected, atol=1e-5)


@pytest.mark.parametrize("method", [DDRM(), DDNMPlus()], ids=["ddrm", "ddnm_plus"])
def test_spectral_steps_meet_exact_complex_data(method: Guided) -> None:
    """Noise-free Fourier samples: the clean state has them, and the rest of the spectrum is D's."""
    case = Case("mixture", "mri")
    A = fourier_mask()
    truth = case.state(0.1)
    case.measurement = Measurement(A, A(truth), 0.0)
    new, mean, *_ = one_step(method, case, 0.3, 0.0)
    D = torch.from_numpy(mean.T.copy()).reshape(new.shape)
    assert_close(new, D + A.adjoint(A(truth - D)), rtol=0, atol=1e-6)
