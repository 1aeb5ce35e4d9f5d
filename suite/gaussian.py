"""Gaussians and Gaussian mixtures whose denoisers, posteriors and marginals are known in closed form.

A Gaussian is held as `N(mean, U diag(variance) U^H)` with an orthonormal `U`: the identity (`Gaussian`), the Fourier
transform (`FourierGaussian`) or eigenvectors (`DenseGaussian`). With `z = alpha x0 + sigma eps`,

    E[x0 | z] = m + U diag(alpha c / (alpha^2 c + sigma^2)) U^H (z - alpha m),
    Cov[x0 | z] = U diag(c sigma^2 / (alpha^2 c + sigma^2)) U^H,

which is right at alpha = 0 and at sigma = 0 too. These laws are the suite's yardstick: every sampler is graded on them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.noise import Noise
from suite.operators import LinearOperator
from suite.process import Process

Mean = Tensor | Callable[[Tensor], Tensor]


class Gaussian:
    """`N(mean, diag(variance))` over items of shape `(C, *spatial)`.

    Args:
        mean: one item `(C, *spatial)`, or a function of the degraded signal `y` `(B, ...)` that returns `(B, C,
            *spatial)`, for a law of x0 given y.
        variance: per element, broadcastable to the item.
        shape: item shape; needed when `mean` is a function.

    Raises:
        InputError: a negative variance, or no shape.
    """

    def __init__(self, mean: Mean, variance: Tensor, *, shape: Sequence[int] | None = None) -> None:
        if isinstance(mean, Tensor):
            shape = tuple(mean.shape)
        elif shape is None:
            raise InputError("a Gaussian whose mean is a function of y needs its item shape (channels, *spatial)")
        if bool((variance < 0).any()):
            raise InputError("the variances of a Gaussian must not be negative")
        self.mean, self.shape, self.dtype = mean, tuple(shape), variance.dtype
        self.variance = self._spread(variance.double())

    def _spread(self, variance: Tensor) -> Tensor:
        return variance.expand(self.shape)

    def analyse(self, x: Tensor) -> Tensor:
        """`U^H x`: `(B, *shape)` to coefficients `(B, *variance.shape)`."""
        return x

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """`U c`, the inverse of `analyse`."""
        return coefficients

    def scalar(self, value: Tensor) -> Tensor:
        """A time-dependent factor, shaped as `t`, made to broadcast against coefficients."""
        return value

    # --- the law itself ---

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def mean_of(self, y: Tensor | None = None) -> Tensor:
        """The mean `(1 or B, *shape)`."""
        if isinstance(self.mean, Tensor):
            return self.mean[None]
        if y is None:
            raise InputError("this Gaussian's mean is a function of the degraded signal y, and none was given")
        return self.mean(y)

    def covariance(self) -> Tensor:
        """Dense covariance `(n, n)` of the flattened item, float64."""
        unit = torch.eye(self.size, dtype=torch.float64).reshape(self.size, *self.shape)
        return self.synthesise(self.variance * self.analyse(unit)).reshape(self.size, self.size)

    def sample(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """`n` draws `(n, *shape)`."""
        white = noise.normal(torch.empty(n, *self.shape, dtype=self.dtype))
        return self.mean_of(y).to(self.dtype) + self.colour(white)

    def colour(self, white: Tensor) -> Tensor:
        """`U diag(sqrt(variance)) U^H white`: white noise to this covariance."""
        return self.synthesise(self.variance.sqrt().to(white.dtype) * self.analyse(white))

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Log density at `x` `(B, *shape)`: `(B,)`, float64."""
        return self._log_density(x.double() - self.mean_of(y).double(), self.variance)

    def _log_density(self, residual: Tensor, variance: Tensor) -> Tensor:
        # Directions without variance carry no density: 0/0 at the anchored end of a bridge, where every x0 is possible.
        some = variance > 0
        safe = torch.where(some, variance, torch.ones_like(variance))
        square = self.analyse(residual).abs() ** 2 / safe + torch.log(2 * math.pi * safe)
        return -0.5 * torch.where(some, square, torch.zeros_like(square)).flatten(1).sum(1)

    def _with(self, mean: Mean, variance: Tensor) -> Gaussian:
        out = copy.copy(self)
        out.mean, out.variance = mean, variance
        return out

    # --- under a process ---

    def denoiser(self, process: Process) -> ExactDenoiser:
        """The exact `E[x0 | x_t, y]`."""
        return ExactDenoiser(self, process)

    def marginal(self, process: Process, t: float, y: Tensor | None = None) -> Gaussian:
        """Law of `x_t`, given one `y` `(1, *shape)` where process or mean take one: an exact start for a sampler."""
        alpha, beta, sigma = (
            float(f(torch.tensor(t, dtype=torch.float64))) for f in (process.alpha, process.beta, process.sigma)
        )
        mean = alpha * self.mean_of(y)[0]
        if process.anchored and y is not None:
            mean = mean + beta * y[0]
        return self._with(mean, alpha**2 * self.variance + sigma**2)

    def posterior_mean(self, z: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """`E[x0 | z]` for `z = alpha x0 + sigma eps`."""
        mean, c = self.mean_of(y).to(z.dtype), self.variance
        a, s = self.scalar(alpha), self.scalar(sigma)
        total = a**2 * c + s**2
        gain = torch.where(total > 0, a * c / total, torch.zeros_like(total))
        return mean + self.synthesise(gain.to(z.dtype) * self.analyse(z - alpha.to(z.dtype) * mean))

    def posterior_covariance(self, z: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """`Cov[x0 | z]`, dense `(B, n, n)` over the flattened item, float64."""
        a, s, c = self.scalar(alpha), self.scalar(sigma), self.variance
        total = a**2 * c + s**2
        left = torch.where(total > 0, c * s**2 / total, c * torch.ones_like(total)).expand(len(z), *c.shape)
        unit = torch.eye(self.size, dtype=torch.float64).reshape(self.size, *self.shape)
        dense = torch.stack([self.synthesise(item * self.analyse(unit)) for item in left])
        return dense.reshape(len(z), self.size, self.size)

    def log_density_at(self, z: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """Log density `(B,)` of `z = alpha x0 + sigma eps`, float64."""
        a, s = self.scalar(alpha), self.scalar(sigma)
        return self._log_density(z.double() - alpha * self.mean_of(y).double(), a**2 * self.variance + s**2)

    # --- given a measurement ---

    def condition(
        self, A: Tensor | LinearOperator, measurement: Tensor, noise: float | Tensor, y: Tensor | None = None
    ) -> DenseGaussian:
        """The exact posterior of x0 given `measurement = A x0 + noise`.

        Args:
            A: matrix `(m, n)` on the flattened item, or an operator on `(B, *shape)` (real input; complex output is
                read as real and imaginary parts).
            measurement: one datum, `(1, *range)`, `range` or `(m,)`.
            noise: standard deviation (of each real and imaginary part); or the covariance `(m, m)`.
            y: degraded signal, where the mean is a function of it.
        """
        matrix, datum, R, evidence = self._observe(A, measurement, noise, y)
        mean, C = self.mean_of(y)[0].double().flatten(), self.covariance()
        gain = C @ matrix.T @ torch.linalg.pinv(evidence.covariance(), hermitian=True)
        rest = torch.eye(self.size, dtype=torch.float64) - gain @ matrix
        posterior = rest @ C @ rest.T + gain @ R @ gain.T  # Joseph's form: stays positive semi-definite
        m = (mean + gain @ (datum - matrix @ mean)).reshape(self.shape)
        out = DenseGaussian(m, posterior)
        out.dtype = self.dtype
        return out

    def evidence(
        self, A: Tensor | LinearOperator, measurement: Tensor, noise: float | Tensor, y: Tensor | None = None
    ) -> Tensor:
        """Log density of the measurement under this prior, a scalar; arguments as in `condition`."""
        _, datum, _, evidence = self._observe(A, measurement, noise, y)
        return evidence.log_prob(datum[None])[0]

    def _observe(
        self, A: Tensor | LinearOperator, measurement: Tensor, noise: float | Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, DenseGaussian]:
        matrix = A.double() if isinstance(A, Tensor) else dense_matrix(A, self.shape)
        datum = real_vector(measurement[None] if measurement.ndim == 0 else measurement).double()
        if datum.numel() != len(matrix):
            raise InputError(f"the measurement has {datum.numel()} real numbers, and the operator gives {len(matrix)}")
        R = torch.as_tensor(noise, dtype=torch.float64)
        R = R**2 * torch.eye(len(matrix), dtype=torch.float64) if R.ndim == 0 else R
        predicted = matrix @ self.mean_of(y)[0].double().flatten()
        return matrix, datum, R, DenseGaussian(predicted, matrix @ self.covariance() @ matrix.T + R)


class FourierGaussian(Gaussian):
    """A stationary Gaussian on a periodic grid: the covariance is diagonal under the Fourier transform over `*spatial`.

    Args:
        mean: as for `Gaussian`.
        variance: power spectrum (`torch.fft.fftn` order, orthonormal: white noise of variance v has spectrum v),
            broadcastable to the item; real, not negative, and even under k -> -k.
        shape: as for `Gaussian`.
    """

    def __init__(self, mean: Mean, variance: Tensor, *, shape: Sequence[int] | None = None) -> None:
        super().__init__(mean, variance, shape=shape)
        mirrored = torch.roll(self.variance.flip(self._axes), (1,) * len(self._axes), self._axes)
        if not torch.allclose(mirrored, self.variance, rtol=1e-5, atol=0):
            raise InputError("the spectrum of a Fourier Gaussian must be even, c(k) = c(-k), for the field to be real")

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(1 - len(self.shape), 0))

    def analyse(self, x: Tensor) -> Tensor:
        return torch.fft.fftn(x, dim=self._axes, norm="ortho")

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return torch.fft.ifftn(coefficients, dim=self._axes, norm="ortho").real

    def scalar(self, value: Tensor) -> Tensor:
        return _per_item(value, len(self.shape) + 1)


class DenseGaussian(Gaussian):
    """A Gaussian with a full covariance `(n, n)` over the flattened item.

    Args:
        mean: as for `Gaussian`.
        variance: the covariance, symmetric and positive semi-definite.
        shape: as for `Gaussian`.
    """

    def __init__(self, mean: Mean, variance: Tensor, *, shape: Sequence[int] | None = None) -> None:
        values, self.vectors = torch.linalg.eigh((variance.double() + variance.double().T) / 2)
        if bool(values[0] < -1e-6 * values[-1].abs()):
            raise InputError(
                f"a covariance must be positive semi-definite; this one has the eigenvalue {float(values[0]):.3g}"
            )
        super().__init__(mean, values.clamp_min(0).to(variance.dtype), shape=shape)

    def _spread(self, variance: Tensor) -> Tensor:
        return variance

    def analyse(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.vectors.to(x.dtype)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return (coefficients @ self.vectors.T.to(coefficients.dtype)).reshape(-1, *self.shape)

    def scalar(self, value: Tensor) -> Tensor:
        return _per_item(value, 2)


class GaussianMixture:
    """`sum_k w_k N_k`, each component a Gaussian of any kind over the same items.

    Args:
        weights: `(K,)`, not negative; normalised here.
        components: K Gaussians.
    """

    def __init__(self, weights: Tensor, components: Sequence[Gaussian]) -> None:
        if weights.shape != (len(components),) or bool((weights < 0).any()) or not float(weights.sum()) > 0:
            raise InputError(f"a mixture of {len(components)} needs as many weights, none negative, not all zero")
        if len({c.shape for c in components}) != 1:
            raise InputError("the components of a mixture must have the same item shape")
        self.weights, self.components = weights.double() / weights.double().sum(), tuple(components)
        self.shape, self.size, self.dtype = components[0].shape, components[0].size, components[0].dtype

    def mean_of(self, y: Tensor | None = None) -> Tensor:
        """The overall mean `(1 or B, *shape)`."""
        return sum((w.to(self.dtype) * c.mean_of(y) for w, c in self._pairs()), torch.zeros((), dtype=self.dtype))

    def covariance(self, y: Tensor | None = None) -> Tensor:
        """Dense overall covariance `(n, n)`, for one `y`, float64."""
        mean = self.mean_of(y).double()
        out = torch.zeros(self.size, self.size, dtype=torch.float64)
        for w, c in self._pairs():
            d = (c.mean_of(y).double() - mean)[0].flatten()
            out = out + w * (c.covariance() + torch.outer(d, d))
        return out

    def sample(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """`n` draws `(n, *shape)`."""
        uniform = torch.special.ndtr(noise.normal(torch.empty(n, 1, dtype=torch.float64)))[:, 0]
        which = torch.searchsorted(self.weights.cumsum(0), uniform).clamp_max(len(self.components) - 1)
        white = noise.normal(torch.empty(n, *self.shape, dtype=self.dtype))
        draws = torch.stack([c.mean_of(y).to(self.dtype) + c.colour(white) for c in self.components])
        return draws[which, torch.arange(n)]

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Log density at `x` `(B, *shape)`: `(B,)`, float64."""
        return torch.logsumexp(self._log_weighted([c.log_prob(x, y) for c in self.components]), 1)

    def responsibilities(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Probability `(B, K)` of each component given a clean `x`, float64."""
        return torch.softmax(self._log_weighted([c.log_prob(x, y) for c in self.components]), 1)

    def denoiser(self, process: Process) -> ExactDenoiser:
        """The exact `E[x0 | x_t, y]`."""
        return ExactDenoiser(self, process)

    def marginal(self, process: Process, t: float, y: Tensor | None = None) -> GaussianMixture:
        """Law of `x_t`; see `Gaussian.marginal`."""
        return GaussianMixture(self.weights, [c.marginal(process, t, y) for c in self.components])

    def posterior_mean(self, z: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """`E[x0 | z]` for `z = alpha x0 + sigma eps`."""
        means, r = self._posterior(z, alpha, sigma, y)
        return sum((_column(r, k, z) * m for k, m in enumerate(means)), torch.zeros_like(z))

    def posterior_covariance(self, z: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """`Cov[x0 | z]`, dense `(B, n, n)`, float64: within the components plus between them."""
        means, r = self._posterior(z.double(), alpha, sigma, y)
        mean = self.posterior_mean(z.double(), alpha, sigma, y)
        out = torch.zeros(len(z), self.size, self.size, dtype=torch.float64)
        for k, (m, c) in enumerate(zip(means, self.components, strict=True)):
            d = (m - mean).flatten(1)
            inside = c.posterior_covariance(z, alpha, sigma, y)
            out = out + r[:, k, None, None] * (inside + d[:, :, None] * d[:, None, :])
        return out

    def _posterior(self, z: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[list[Tensor], Tensor]:
        logs = [c.log_density_at(z, alpha, sigma, y) for c in self.components]
        return [c.posterior_mean(z, alpha, sigma, y) for c in self.components], torch.softmax(
            self._log_weighted(logs), 1
        )

    def condition(
        self, A: Tensor | LinearOperator, measurement: Tensor, noise: float | Tensor, y: Tensor | None = None
    ) -> GaussianMixture:
        """The exact posterior mixture given a linear measurement; arguments as in `Gaussian.condition`."""
        matrix = A if isinstance(A, Tensor) else dense_matrix(A, self.shape)
        logs = torch.stack([c.evidence(matrix, measurement, noise, y) for c in self.components])
        weights = torch.softmax(self.weights.log() + logs, 0)
        return GaussianMixture(weights, [c.condition(matrix, measurement, noise, y) for c in self.components])

    def _log_weighted(self, logs: list[Tensor]) -> Tensor:
        return self.weights.log() + torch.stack(logs, 1)

    def _pairs(self) -> list[tuple[Tensor, Gaussian]]:
        return list(zip(self.weights, self.components, strict=True))


class ExactDenoiser(Denoiser):
    """The exact `E[x0 | x_t, y]` of a Gaussian or a mixture; `t` per element where every covariance is diagonal."""

    def __init__(self, law: Gaussian | GaussianMixture, process: Process) -> None:
        super().__init__(process)
        self.law = law

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.law.posterior_mean(self.process.shift(x, t, y), self.process.alpha(t), self.process.sigma(t), y)

    def covariance(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """`Cov[x0 | x_t, y]`, dense `(B, n, n)` over the flattened item, float64."""
        z = self.process.shift(x, t, y)
        return self.law.posterior_covariance(z, self.process.alpha(t), self.process.sigma(t), y)


def dense_matrix(op: LinearOperator, shape: Sequence[int]) -> Tensor:
    """The operator as a real matrix `(m, n)`, float64, on real items of `shape`; complex rows give two real ones each.

    Raises:
        InputError: the operator wants complex input.
    """
    if op.domain_dtype.is_complex:
        raise InputError("only an operator on real items becomes a matrix here; give complex items two real channels")
    size = math.prod(shape)
    columns = op(torch.eye(size, dtype=torch.float64).reshape(size, *shape))
    return torch.stack([real_vector(column) for column in columns], 1).double()


def real_vector(x: Tensor) -> Tensor:
    """`x` flattened; a complex one as its real and imaginary parts side by side."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).flatten()


def _per_item(value: Tensor, ndim: int) -> Tensor:
    flat = value.reshape(len(value), -1) if value.ndim else value.reshape(1, 1)
    if not bool((flat == flat[:, :1]).all()):
        raise InputError("times per element need a Gaussian with a diagonal covariance; give one time per item")
    return flat[:, 0].reshape(-1, *(1,) * (ndim - 1))


def _column(r: Tensor, k: int, like: Tensor) -> Tensor:
    return r[:, k].to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))
