"""Closed-form denoisers against linear algebra, quadrature, automatic differentiation and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal

from suite.errors import InputError
from suite.gaussian import DenseGaussian, FourierGaussian, Gaussian, GaussianMixture, dense_matrix
from suite.noise import Noise
from suite.operators import FFT, ToComplex
from suite.process import PROCESSES, process

F64 = torch.float64
SHAPE = (2, 3, 4)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def random_covariance(n: int, seed: int = 0) -> Tensor:
    root = randn(n, n, seed=seed) / math.sqrt(n)
    return root @ root.T + 0.05 * torch.eye(n, dtype=F64)


def even_spectrum(shape: tuple[int, ...]) -> Tensor:
    """1 / (1 + k^2) on the periodic grid of the spatial dimensions."""
    k2 = sum(torch.fft.fftfreq(n, 1 / n, dtype=F64).reshape(-1, *(1,) * i) ** 2 for i, n in enumerate(shape[:0:-1]))
    return (1 / (1 + torch.as_tensor(k2))).expand(shape)


def gaussians() -> dict[str, Gaussian]:
    mean = randn(*SHAPE, seed=5)
    return {
        "diagonal": Gaussian(mean, randn(*SHAPE, seed=6) ** 2 + 0.1),
        "fourier": FourierGaussian(mean, even_spectrum(SHAPE)),
        "dense": DenseGaussian(mean, random_covariance(24)),
    }


@pytest.mark.parametrize("kind", ["diagonal", "fourier", "dense"])
@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (0.0, 1.0), (1.0, 0.0), (0.3, 0.01)])
def test_gaussian_denoiser_is_linear_algebra(kind: str, alpha: float, sigma: float) -> None:
    law, z = gaussians()[kind], randn(3, *SHAPE, seed=8)
    C, m = law.covariance().numpy(), law.mean_of()[0].numpy().ravel()
    total = alpha**2 * C + sigma**2 * np.eye(24)
    gain = alpha * C @ np.linalg.inv(total)
    expected = m + (z.numpy().reshape(3, -1) - alpha * m) @ gain.T
    a, s = torch.full((1, 1, 1, 1), alpha, dtype=F64), torch.full((1, 1, 1, 1), sigma, dtype=F64)
    assert np.allclose(law.posterior_mean(z, a, s).numpy().reshape(3, -1), expected, atol=1e-9)
    assert np.allclose(law.posterior_covariance(z, a, s)[1].numpy(), C - alpha * gain @ C, atol=1e-9)


def test_bridge_end_says_nothing_about_x0() -> None:
    """At t = 1 of a bridge alpha = sigma = 0: the answer is the prior."""
    p, y, t = process("sb-ve"), randn(2, 1, 2), torch.ones(1, 1, 1, dtype=F64)
    near, far = (
        Gaussian(torch.full((1, 2), -1.0, dtype=F64), torch.ones(1, 2, dtype=F64)),
        Gaussian(torch.full((1, 2), 3.0, dtype=F64), 4 * torch.ones(1, 2, dtype=F64)),
    )
    torch.testing.assert_close(near.denoiser(p)(y, t, y), near.mean_of().expand(2, 1, 2))
    mixture = GaussianMixture(torch.tensor([0.25, 0.75]), [near, far])
    torch.testing.assert_close(mixture.denoiser(p)(y, t, y), torch.full((2, 1, 2), 2.0, dtype=F64))


def test_flat_directions_stay_at_the_mean() -> None:
    law = Gaussian(torch.tensor([[1.0, 2.0]], dtype=F64), torch.tensor([[0.0, 1.0]], dtype=F64))
    z, one, zero = (
        torch.tensor([[[5.0, 5.0]]], dtype=F64),
        torch.ones(1, 1, 1, dtype=F64),
        torch.zeros(1, 1, 1, dtype=F64),
    )
    torch.testing.assert_close(law.posterior_mean(z, one, zero), torch.tensor([[[1.0, 5.0]]], dtype=F64))


@pytest.mark.parametrize("kind", ["diagonal", "fourier", "dense"])
def test_gaussian_density_and_draws(kind: str) -> None:
    law = gaussians()[kind]
    frozen = stats.multivariate_normal(law.mean_of()[0].numpy().ravel(), law.covariance().numpy())
    x = randn(4, *SHAPE, seed=3)
    assert np.allclose(law.log_prob(x).numpy(), frozen.logpdf(x.numpy().reshape(4, -1)))
    draws = law.sample(40_000, Noise.of(0)).flatten(1)
    assert torch.allclose(draws.mean(0), law.mean_of()[0].flatten(), atol=0.04)
    assert torch.allclose(torch.cov(draws.T), law.covariance(), atol=0.06)


def test_draws_belong_to_the_item() -> None:
    law = gaussians()["fourier"]
    together = law.sample(3, Noise.of(0, ["a", "b", "c"]))
    torch.testing.assert_close(law.sample(1, Noise.of(0, ["b"]))[0], together[1])


@pytest.mark.parametrize("name", PROCESSES)
def test_marginal_is_the_law_of_the_states(name: str) -> None:
    p, law, t = process(name), gaussians()["dense"], 0.7
    y = randn(1, *SHAPE, seed=4)
    marginal = law.marginal(p, t, y)
    time = torch.tensor(t, dtype=F64)
    torch.testing.assert_close(
        marginal.mean_of(), p.marginal(law.mean_of(), time, torch.zeros(1, *SHAPE, dtype=F64), y)
    )
    expected = p.alpha(time) ** 2 * law.covariance() + p.sigma(time) ** 2 * torch.eye(24, dtype=F64)
    torch.testing.assert_close(marginal.covariance(), expected)


def test_times_per_element_need_a_diagonal() -> None:
    p, laws = process("vp"), gaussians()
    x, t = randn(2, *SHAPE), torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=F64)
    mean = laws["diagonal"].denoiser(p)(x, t)
    one = laws["diagonal"].denoiser(p)(x, t[:, :1, 1:2, 2:3])
    torch.testing.assert_close(mean[:, 0, 1, 2], one[:, 0, 1, 2])
    for kind in ("fourier", "dense"):
        with pytest.raises(InputError, match="diagonal"):
            laws[kind].denoiser(p)(x, t)
        same = t[:, :1, :1, :1]
        torch.testing.assert_close(laws[kind].denoiser(p)(x, same.expand(2, *SHAPE)), laws[kind].denoiser(p)(x, same))


def test_conditional_mean_depends_on_y() -> None:
    """x0 | y ~ N(0.3 y, c), y batched, under an anchored process."""
    p = process("ouve")
    law = Gaussian(lambda y: 0.3 * y, torch.full((1, 4), 0.2, dtype=F64), shape=(1, 4))
    y, x, t = randn(3, 1, 4), randn(3, 1, 4, seed=1), torch.full((1, 1, 1), 0.6, dtype=F64)
    alpha, sigma = p.alpha(t), p.sigma(t)
    z = x - p.beta(t) * y
    expected = 0.3 * y + alpha * 0.2 / (alpha**2 * 0.2 + sigma**2) * (z - alpha * 0.3 * y)
    torch.testing.assert_close(law.denoiser(p)(x, t, y), expected)
    with pytest.raises(InputError, match="function of the degraded signal"):
        law.mean_of()


def test_float32_and_complex_states() -> None:
    p, t = process("vp"), torch.full((1, 1, 1, 1), 0.4, dtype=F64)
    for law in gaussians().values():
        x = randn(2, *SHAPE)
        single = law.denoiser(p)(x.float(), t)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), law.denoiser(p)(x, t), rtol=1e-4, atol=1e-5)
    white = Gaussian(torch.zeros(SHAPE, dtype=F64), torch.ones(SHAPE, dtype=F64))
    x, other = randn(2, *SHAPE), randn(2, *SHAPE, seed=1)
    both = white.denoiser(p)(torch.complex(x, other), t)
    torch.testing.assert_close(both, torch.complex(white.denoiser(p)(x, t), white.denoiser(p)(other, t)))


def test_bad_laws_are_refused() -> None:
    mean, one = torch.zeros(1, 4), torch.ones(1, 4)
    with pytest.raises(InputError, match="negative"):
        Gaussian(mean, -one)
    with pytest.raises(InputError, match="shape"):
        Gaussian(lambda y: y, one)
    with pytest.raises(InputError, match="even"):
        FourierGaussian(mean, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(InputError, match="semi-definite"):
        DenseGaussian(mean, -torch.eye(4))
    with pytest.raises(InputError, match="weights"):
        GaussianMixture(torch.tensor([1.0]), [Gaussian(mean, one), Gaussian(mean, one)])
    with pytest.raises(InputError, match="same item shape"):
        GaussianMixture(torch.ones(2), [Gaussian(mean, one), Gaussian(torch.zeros(1, 3), torch.ones(1, 3))])


# --- mixtures -------------------------------------------------------------------------------------------------------


def mixture(n: int = 3) -> GaussianMixture:
    means = [randn(1, n, seed=i) * 1.5 for i in range(3)]
    parts = [
        Gaussian(means[0], torch.full((1, n), 0.3, dtype=F64)),
        DenseGaussian(means[1], random_covariance(n, 7)),
        FourierGaussian(means[2], even_spectrum((1, n))),
    ]
    return GaussianMixture(torch.tensor([0.2, 0.5, 0.3], dtype=F64), parts)


def test_mixture_mean_by_quadrature() -> None:
    p, t = process("vp"), torch.full((1, 1, 1), 0.5, dtype=F64)
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    weights, means, stds = [0.3, 0.7], [-1.0, 0.8], [0.2, 0.5]
    law = GaussianMixture(
        torch.tensor(weights, dtype=F64),
        [
            Gaussian(torch.full((1, 1), m, dtype=F64), torch.full((1, 1), s * s, dtype=F64))
            for m, s in zip(means, stds, strict=True)
        ],
    )
    x0 = np.linspace(-6, 6, 20_001)
    prior = sum(w * stats.norm.pdf(x0, m, s) for w, m, s in zip(weights, means, stds, strict=True))
    for z in (-2.0, 0.0, 0.3, 1.5):
        joint = prior * stats.norm.pdf(z, alpha * x0, sigma)
        mean = (x0 * joint).sum() / joint.sum()
        variance = ((x0 - mean) ** 2 * joint).sum() / joint.sum()
        x = torch.full((1, 1, 1), z, dtype=F64)
        assert float(law.denoiser(p)(x, t)) == pytest.approx(mean, abs=1e-8)
        assert float(law.denoiser(p).covariance(x, t)) == pytest.approx(variance, abs=1e-8)


@pytest.mark.parametrize("name", ["vp", "edm", "ouve", "rddm"])
def test_tweedie(name: str) -> None:
    """The score of the marginal, by autograd on its density, gives the mean; the mean's Jacobian the covariance."""
    p, law, t = process(name), mixture(), torch.full((1, 1, 1), 0.6, dtype=F64)
    y = randn(1, 1, 3, seed=11)
    alpha, sigma, shift = p.alpha(t)[0, 0, 0], p.sigma(t)[0, 0, 0], (p.beta(t) * y).flatten()
    x = (randn(1, 1, 3, seed=12) + p.beta(t) * y).requires_grad_()
    parts = [
        MultivariateNormal(
            alpha * c.mean_of().flatten() + shift, alpha**2 * c.covariance() + sigma**2 * torch.eye(3, dtype=F64)
        )
        for c in law.components
    ]
    density = torch.logsumexp(
        torch.stack([w.log() + d.log_prob(x.flatten()) for w, d in zip(law.weights, parts, strict=True)]), 0
    )
    (score,) = torch.autograd.grad(density, x)
    denoiser = law.denoiser(p)
    mean = denoiser(x, t, y)
    torch.testing.assert_close(mean, (x - shift + sigma**2 * score) / alpha)
    jacobian = torch.autograd.functional.jacobian(lambda v: denoiser(v, t, y).flatten(), x.detach()).reshape(3, 3)
    torch.testing.assert_close(denoiser.covariance(x.detach(), t, y)[0], sigma**2 / alpha * jacobian)


def test_mixture_survives_the_tails() -> None:
    law = GaussianMixture(
        torch.tensor([0.5, 0.5]),
        [Gaussian(torch.full((1, 500), m), torch.full((1, 500), 1e-4)) for m in (-1.0, 1.0)],
    )
    p, t = process("edm"), torch.full((1, 1, 1), 0.05, dtype=F64)
    mean = law.denoiser(p)(torch.full((1, 1, 500), 30.0), t)
    assert mean.isfinite().all() and float(mean.min()) > 0.9
    assert torch.allclose(law.responsibilities(torch.ones(1, 1, 500)), torch.tensor([[0.0, 1.0]], dtype=F64))


def test_mixture_moments_and_draws() -> None:
    law = mixture()
    draws = law.sample(60_000, Noise.of(0))
    assert torch.allclose(draws.mean(0), law.mean_of()[0], atol=0.03)
    assert torch.allclose(torch.cov(draws.flatten(1).T), law.covariance(), atol=0.06)
    assert torch.allclose(law.responsibilities(draws).mean(0), law.weights, atol=0.01)
    marginal = law.marginal(process("vp"), 0.3)
    torch.testing.assert_close(marginal.weights, law.weights)


# --- conditioning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["diagonal", "fourier", "dense"])
def test_posterior_in_information_form(kind: str) -> None:
    law, A, y = gaussians()[kind], randn(9, 24, seed=3), randn(9, seed=4)
    R = random_covariance(9, 5)
    precision = torch.linalg.inv(law.covariance()) + A.T @ torch.linalg.solve(R, A)
    rhs = torch.linalg.solve(law.covariance(), law.mean_of()[0].flatten()) + A.T @ torch.linalg.solve(R, y)
    posterior = law.condition(A, y, R)
    torch.testing.assert_close(posterior.covariance(), torch.linalg.inv(precision), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        posterior.mean_of()[0].flatten(), torch.linalg.solve(precision, rhs), rtol=1e-7, atol=1e-9
    )


def test_exact_measurement_pins_what_it_sees() -> None:
    law = gaussians()["dense"]
    A = torch.eye(24, dtype=F64)[:5]
    y = randn(5, seed=4)
    posterior = law.condition(A, y, 0.0)
    torch.testing.assert_close(posterior.mean_of().flatten()[:5], y)
    assert posterior.covariance()[:5].abs().max() < 1e-12


def test_complex_operator_becomes_a_real_matrix() -> None:
    op = FFT((-2, -1)) @ ToComplex()
    A = dense_matrix(op, SHAPE)
    x = randn(1, *SHAPE, seed=1)
    y = op(x)
    torch.testing.assert_close(A @ x.flatten(), torch.view_as_real(y).flatten())
    law = gaussians()["dense"]
    torch.testing.assert_close(law.condition(op, y, 1e-4).mean_of(), x, rtol=0, atol=1e-5)
    by_matrix = law.condition(A, torch.view_as_real(y).flatten(), 0.1)
    torch.testing.assert_close(law.condition(op, y, 0.1).mean_of(), by_matrix.mean_of())


def test_mixture_posterior_by_quadrature() -> None:
    weights, means, variances = [0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], [[0.2, 0.4], [0.3, 0.1]]
    law = GaussianMixture(
        torch.tensor(weights, dtype=F64),
        [
            Gaussian(torch.tensor([m], dtype=F64), torch.tensor([v], dtype=F64))
            for m, v in zip(means, variances, strict=True)
        ],
    )
    A, y, noise = torch.tensor([[1.0, 1.0]], dtype=F64), torch.tensor([0.4], dtype=F64), 0.5
    axis = np.linspace(-5, 5, 801)
    u, v = np.meshgrid(axis, axis, indexing="ij")
    parts = [
        w
        * stats.norm.pdf(u, m[0], math.sqrt(s[0]))
        * stats.norm.pdf(v, m[1], math.sqrt(s[1]))
        * stats.norm.pdf(0.4, u + v, noise)
        for w, m, s in zip(weights, means, variances, strict=True)
    ]
    total = sum(p.sum() for p in parts)
    posterior = law.condition(A, y, noise)
    assert np.allclose(posterior.weights.numpy(), [p.sum() / total for p in parts], atol=1e-6)
    mean = [sum((p * c).sum() for p in parts) / total for c in (u, v)]
    assert np.allclose(posterior.mean_of().flatten().numpy(), mean, atol=1e-6)


def test_measurement_of_the_wrong_size() -> None:
    with pytest.raises(InputError, match="real numbers"):
        gaussians()["dense"].condition(torch.eye(24, dtype=F64), randn(5), 0.1)


def test_mixture_given_y() -> None:
    """Components whose means follow y: as a mixture conditioned on each y by hand."""
    p, t = process("rddm"), torch.full((1, 1, 1), 0.5, dtype=F64)
    weights, var = torch.tensor([0.4, 0.6], dtype=F64), torch.full((1, 2), 0.1, dtype=F64)
    law = GaussianMixture(weights, [Gaussian(lambda y, k=k: k * y, var, shape=(1, 2)) for k in (0.5, -1.0)])
    y, x = randn(3, 1, 2, seed=1), randn(3, 1, 2, seed=2)
    together = law.denoiser(p)(x, t, y)
    for i in range(3):
        fixed = GaussianMixture(weights, [Gaussian(k * y[i], var) for k in (0.5, -1.0)])
        torch.testing.assert_close(fixed.denoiser(p)(x[i : i + 1], t, y[i : i + 1])[0], together[i])
