"""Measurement: chi-square of simulated noise, proximal step and posterior draws against closed forms, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from suite.errors import InputError
from suite.measurement import Measurement, transmission
from suite.noise import Noise
from suite.operators import (
    FFT,
    CoilSensitivities,
    Convolve,
    Diagonal,
    Identity,
    InverseCholesky,
    LinearOperator,
    Matrix,
    Subsample,
    ToComplex,
    circulant_preconditioner,
    gaussian_kernel,
)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Standard normal; complex: in each of the two parts."""
    return Noise.of(seed).normal(torch.empty(shape, dtype=dtype))


def dense(op: LinearOperator, shape: tuple[int, ...]) -> Tensor:
    """Matrix of an operator on a real domain, complex ranges as (real, imaginary) pairs."""
    size = int(np.prod(shape))
    columns = op(torch.eye(size, dtype=torch.float64).reshape(size, *shape))
    columns = torch.view_as_real(columns) if columns.is_complex() else columns
    return columns.flatten(1).mT


def pairs(y: Tensor) -> Tensor:
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


# --- misfit -----------------------------------------------------------------------------------------------------------


def _five_sigma(freedom: float) -> float:
    return 5 * (2 / freedom) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("law", ["scalar", "per item", "diagonal", "covariance"])
def test_chi2_of_the_truth_is_one(dtype: torch.dtype, law: str) -> None:
    b, m = 3, 600
    op = Matrix(random(m, 20, dtype=dtype))
    x, e = random(b, 20, dtype=dtype, seed=1), random(b, m, dtype=dtype, seed=2)
    if law == "scalar":
        noise, n = 0.3, 0.3 * e
    elif law == "per item":
        noise = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
        n = noise[:, None] * e
    elif law == "diagonal":
        noise = torch.linspace(0.1, 5, m, dtype=torch.float64)[None]
        n = noise * e
    else:
        root = random(m, m, dtype=dtype, seed=3) / m**0.5 + torch.eye(m)
        noise, n = InverseCholesky(root @ root.mH), e @ root.mT
    measurement = Measurement(op, op(x) + n, noise)
    chi2 = measurement.misfit_chi2(x)
    freedom = m * (2 if dtype.is_complex else 1)
    assert chi2.shape == (b,)
    assert bool(((chi2 - 1).abs() < _five_sigma(freedom)).all())
    assert bool((measurement.misfit_chi2(x + 3) > 1.5).any())
    torch.testing.assert_close(measurement.negative_log_likelihood(x), chi2 * freedom / 2)


def test_chi2_leaves_out_entries_without_weight_and_divides_by_view() -> None:
    x = random(2, 1, 40, 50)
    std = torch.full((1, 1, 40, 50), 0.5, dtype=torch.float64)
    std[..., 25:] = torch.inf
    std[..., 3, :] = torch.inf
    y = x + 0.5 * random(2, 1, 40, 50, seed=1)
    y[..., 30] = torch.nan  # what was not measured may hold anything
    measurement = Measurement(Identity(), y, std)
    chi2 = measurement.misfit_chi2(x)
    assert bool(((chi2 - 1).abs() < _five_sigma(39 * 25)).all())
    rows = measurement.misfit_chi2(x, by=2)
    assert rows.shape == (2, 40)
    assert bool(rows[:, 3].isnan().all())
    rows = torch.cat([rows[:, :3], rows[:, 4:]], 1)
    torch.testing.assert_close(rows.mean(1), chi2)
    expected = ((y - x)[..., 5, :25] / 0.5).square().mean(-1)
    torch.testing.assert_close(measurement.misfit_chi2(x, by=-2)[:, 5], expected[:, 0])
    assert bool(torch.isfinite(measurement.proximal(x, 1.0)).all())


@pytest.mark.parametrize("photons, electronic", [(1e5, 0.0), (1e4, 0.0), (1e4, 20.0)])
def test_chi2_of_transmission_data_is_one(photons: float, electronic: float) -> None:
    rng = np.random.default_rng(0)
    line = rng.uniform(0, 3, (1, 200, 250))
    counts = rng.poisson(photons * np.exp(-line)) + rng.normal(0, electronic, line.shape)
    y, variance = transmission(torch.from_numpy(counts), photons, electronic)
    measurement = Measurement(Identity(), y, variance.sqrt())
    chi2 = float(measurement.misfit_chi2(torch.from_numpy(line)))
    assert chi2 == pytest.approx(1, abs=0.03)


def test_transmission_gives_no_weight_to_dark_rays() -> None:
    counts = torch.tensor([1000.0, 0.0, -3.0, torch.nan, 100.0])
    y, variance = transmission(counts, torch.tensor([1000.0, 1, 1, 1, 1000]), electronic_sigma=10.0)
    torch.testing.assert_close(y, torch.tensor([0.0, 0.0, 0.0, 0.0, math.log(10.0)]))
    torch.testing.assert_close(variance, torch.tensor([1.1e-3, torch.inf, torch.inf, torch.inf, 0.02]))
    measurement = Measurement(Identity(), y[None], variance.sqrt()[None])
    assert torch.equal(measurement.residual(torch.ones(1, 5))[0, 1:4], torch.zeros(3))
    assert transmission(torch.tensor([7]), 7).line_integrals.dtype == torch.float32
    with pytest.raises(InputError, match="I0"):
        transmission(counts, 0.0)
    with pytest.raises(InputError, match="electronic"):
        transmission(counts, 1.0, -1.0)


# --- closed forms -----------------------------------------------------------------------------------------------------


def _problem(kind: str) -> tuple[Measurement, tuple[int, ...], Tensor, Tensor]:
    """Measurement of batch 1, item shape, and its dense whitened matrix and data."""
    shape: tuple[int, ...] = (1, 3, 4)
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]])
    op: LinearOperator
    noise: float | Tensor | LinearOperator = 0.2
    if kind == "mask":
        op = Subsample(mask)
    elif kind == "blur, diagonal noise":
        op = Convolve(gaussian_kernel(0.8).double(), (3, 4), boundary="zero")
        noise = 0.1 + random(1, *shape, seed=5).abs()
        noise[0, 0, 0, 1] = torch.inf
    elif kind == "matrix, correlated noise":
        root = random(7, 7, seed=6)
        op, noise = Matrix(random(7, 12), shape), InverseCholesky(root @ root.mT + 0.3 * torch.eye(7))
    else:
        shape = (2, 3, 4)
        op = Subsample(mask) @ FFT() @ CoilSensitivities(random(2, 3, 4, dtype=torch.complex128)) @ ToComplex()
    x = random(1, *shape, seed=1)
    measurement = Measurement(op, op(x) + 0.2 * random(*op(x).shape, dtype=op(x).dtype, seed=2), noise)
    whitened, y = measurement.whitened()
    return measurement, shape, dense(whitened, shape), pairs(y)[0]


PROBLEMS = ["mask", "blur, diagonal noise", "matrix, correlated noise", "coils, complex noise"]


def _root(shape: tuple[int, ...]) -> tuple[Matrix, Tensor]:
    n = int(np.prod(shape))
    root = random(n, n, seed=9) / n**0.5 + 0.5 * torch.eye(n)
    return Matrix(root, shape, shape), root


def _mean_and_covariance(a: Tensor, y: Tensor, v: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior of `N(v, prior)` after `y = A x + white noise`, by dense matrices."""
    covariance = torch.linalg.inv(a.mT @ a + torch.linalg.inv(prior))
    return v + covariance @ a.mT @ (y - a @ v), covariance


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("with_root", [False, True])
def test_proximal_is_the_gaussian_posterior_mean(kind: str, with_root: bool) -> None:
    measurement, shape, a, y = _problem(kind)
    n = a.shape[1]
    precision = torch.tensor([0.5, 2.0, 40.0], dtype=torch.float64)  # one measurement, three samples
    v = random(3, *shape, seed=3)
    op, root = _root(shape)
    prior = root @ root.mT if with_root else torch.eye(n)
    x = measurement.proximal(v, precision, root=op if with_root else None, tolerance=0.0)
    for i in range(3):
        mean, _ = _mean_and_covariance(a, y, v[i].flatten(), prior / precision[i])
        torch.testing.assert_close(x[i].flatten(), mean, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("with_root", [False, True])
def test_posterior_draws_have_the_exact_mean_and_covariance(kind: str, with_root: bool) -> None:
    measurement, shape, a, y = _problem(kind)
    n, draws = a.shape[1], 20000
    v, precision = random(1, *shape, seed=3), 0.7
    op, root = _root(shape)
    prior = root @ root.mT if with_root else torch.eye(n)
    mean, covariance = _mean_and_covariance(a, y, v.flatten(), prior / precision)
    x = measurement.posterior_draw(
        v.expand(draws, *shape), precision, torch.Generator().manual_seed(0), root=op if with_root else None
    ).flatten(1)
    # Whitened by the exact law the draws are standard normal: five standard errors.
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (x - mean).mT, upper=False)
    assert float(z.mean(1).abs().max()) < 5 / draws**0.5
    deviation = (z @ z.mT / draws - torch.eye(n)).abs()
    assert float(deviation.max()) < 5 * (2 / draws) ** 0.5


def test_precision_may_differ_between_entries() -> None:
    measurement, shape, a, y = _problem("blur, diagonal noise")
    precision = 0.1 + random(1, *shape, seed=4).abs()
    v = random(1, *shape, seed=3)
    prior = torch.diag(1 / precision.flatten())
    mean, covariance = _mean_and_covariance(a, y, v.flatten(), prior)
    torch.testing.assert_close(measurement.proximal(v, precision, tolerance=0.0).flatten(), mean)
    x = measurement.posterior_draw(v.expand(20000, *shape), precision, Noise.of(0)).flatten(1)
    torch.testing.assert_close(x.var(0), covariance.diagonal(), rtol=0.06, atol=0)


def test_draws_of_an_item_do_not_depend_on_the_batch() -> None:
    measurement, shape, _, _ = _problem("coils, complex noise")
    v = random(3, *shape, seed=3)
    names = ["a", "b", "c"]
    together = measurement.posterior_draw(v, 2.0, Noise.of(0, names))
    alone = measurement.posterior_draw(v[1:2], 2.0, Noise.of(0, ["b"]))
    torch.testing.assert_close(together[1:2], alone)
    assert float((together[0] - v[0] - (alone[0] - v[1])).abs().max()) > 0.1


def test_gradient_is_that_of_the_likelihood() -> None:
    for kind in PROBLEMS:
        measurement, shape, _, _ = _problem(kind)
        x = random(2, *shape, seed=3).requires_grad_()
        (expected,) = torch.autograd.grad(measurement.negative_log_likelihood(x).sum(), x)
        torch.testing.assert_close(measurement.gradient(x.detach()), expected)


def test_whitened_measurement_is_the_same_measurement() -> None:
    for kind in PROBLEMS:
        measurement, shape, _, _ = _problem(kind)
        op, y = measurement.whitened()
        again = Measurement(op, y, measurement.noise_level)
        x = random(2, *shape, seed=3)
        torch.testing.assert_close(again.residual(x), measurement.residual(x))
        torch.testing.assert_close(again.proximal(x, 1.0), measurement.proximal(x, 1.0), rtol=1e-4, atol=1e-4)


def test_scalar_noise_keeps_the_svd_of_the_operator() -> None:
    op = Diagonal(torch.eye(5)) @ FFT() @ ToComplex()
    x = random(1, 2, 5, 5)
    whitened, y = Measurement(op, op(x), 0.1).whitened()
    svd = whitened.svd()
    torch.testing.assert_close(svd.singular_values, 10 * torch.eye(5))
    torch.testing.assert_close(svd.u(svd.singular_values * svd.vh(x)), y)


def test_float32_step_with_little_noise_is_accurate_in_posterior_standard_deviations() -> None:
    blur = Convolve(gaussian_kernel(1.0), (32, 32))
    x = random(4, 1, 32, 32, dtype=torch.float32)
    sigma, precision = 0.02, 1.0
    v = x + random(4, 1, 32, 32, dtype=torch.float32, seed=1)
    measurement = Measurement(blur, blur(x) + sigma * random(4, 1, 32, 32, dtype=torch.float32, seed=2), sigma)
    spectrum = blur.padded.symbol.abs().double() ** 2 / sigma**2 + precision

    def solve(b: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(b.double()) / spectrum).real

    exact = solve(blur.adjoint(measurement.y.double()) / sigma**2 + precision * v.double())
    std = float((1 / spectrum).mean().sqrt())
    normal = measurement.whitened_normal
    for preconditioner in (None, circulant_preconditioner(normal, x[:1], precision)):
        result = measurement.proximal(v, precision, preconditioner=preconditioner)
        assert float((result - exact).square().mean().sqrt()) < 0.01 * std


# --- limits and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_free_proximal_projects_and_draw_keeps_the_null_space(dtype: torch.dtype) -> None:
    a = random(5, 12, dtype=dtype)
    x = random(1, 12, dtype=dtype, seed=1)
    measurement = Measurement(Matrix(a), x @ a.mT, 0.0)
    v = random(2, 12, dtype=dtype, seed=2)
    assert measurement.noise_level == 0
    exact = v + (x @ a.mT - v @ a.mT) @ torch.linalg.pinv(a).mT
    atol = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(measurement.proximal(v, 3.0, tolerance=0.0), exact, rtol=0, atol=atol)
    limit = Measurement(Matrix(a.double()), x.double() @ a.double().mT, 1e-5).proximal(v.double(), 3.0, tolerance=0.0)
    torch.testing.assert_close(limit, exact.double(), rtol=0, atol=1e-3)
    draws = measurement.posterior_draw(v[:1].expand(20000, -1), 4.0, Noise.of(0))
    assert float((draws @ a.mT - measurement.y).abs().max()) < 1e-2
    projector = torch.eye(12, dtype=dtype) - torch.linalg.pinv(a) @ a
    covariance = (draws - draws.mean(0)).mT @ (draws - draws.mean(0)) / len(draws)
    assert float((covariance - projector / 4).abs().max()) < 0.02


def test_noise_free_projection_with_precision_per_entry_is_the_limit_of_small_noise() -> None:
    a, x, v = random(4, 9), random(1, 9, seed=1), random(2, 9, seed=2)
    precision = 0.2 + random(1, 9, seed=3).abs()
    y = x @ a.mT
    free = Measurement(Matrix(a), y, 0.0).proximal(v, precision)
    little = Measurement(Matrix(a), y, 1e-4).proximal(v, precision, tolerance=0.0)
    torch.testing.assert_close(free, little, rtol=0, atol=1e-4)
    plain = Measurement(Matrix(a), y, 0.0).proximal(v, 1.0)
    assert float((free - plain).abs().max()) > 0.01


def test_noise_free_measurement_has_no_chi2_and_unit_weights() -> None:
    y = random(1, 6)
    measurement = Measurement(Identity(), y, 0.0)
    torch.testing.assert_close(measurement.residual(torch.zeros(2, 6)), -y.expand(2, 6))
    with pytest.raises(InputError, match="noise-free"):
        measurement.misfit_chi2(y)
    with pytest.raises(InputError, match="noise-free"):
        measurement.negative_log_likelihood(y)


def test_nonlinear_operator_has_residual_and_likelihood_only() -> None:
    def phase_retrieval(x: Tensor) -> Tensor:
        return x.square().sum(-1)

    x = random(2, 1, 5).requires_grad_()
    measurement = Measurement(phase_retrieval, torch.ones(1, 1), 0.5, linear=False)
    (gradient,) = torch.autograd.grad(measurement.negative_log_likelihood(x).sum(), x)
    torch.testing.assert_close(gradient, (x.square().sum(-1, keepdim=True) - 1) * 2 * x / 0.25)
    for call in (measurement.whitened, lambda: measurement.proximal(x, 1.0), lambda: measurement.gradient(x)):
        with pytest.raises(InputError, match="linear operator"):
            call()
    with pytest.raises(InputError, match="linear=False"):
        Measurement(phase_retrieval, torch.ones(1, 1), 0.5)


@pytest.mark.parametrize(
    "noise, message",
    [
        (-1.0, ">= 0"),
        (float("nan"), ">= 0"),
        (torch.tensor([0.0, 1.0]), "for all entries or for none"),
        (torch.ones(5), "one value for each item"),
        (torch.ones(2, 4), "one value for each item"),
        (torch.ones(1, 1, 5), "one value for each item"),
    ],
)
def test_noise_that_fits_nothing_is_refused(noise: float | Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Measurement(Identity(), torch.zeros(2, 5), noise)


def test_bad_data_and_precision_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        Measurement(Identity(), torch.tensor([[1.0, torch.nan]]), 1.0)
    with pytest.raises(InputError, match="precision"):
        Measurement(Identity(), torch.zeros(1, 5), 1.0).proximal(torch.zeros(2, 5), 0.0)
