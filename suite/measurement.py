"""A measurement `y = A x + n` with a known noise law: whitening, misfit, proximal step, exact Gaussian posterior draw.

Complex noise of standard deviation s means s in the real part and s in the imaginary part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from suite.errors import InputError
from suite.linalg import TensorMap, conjugate_gradient, dot, expand
from suite.noise import Noise
from suite.operators import Compose, Diagonal, LinearOperator, Tangent


class Transmission(NamedTuple):
    """Line integrals and the variance of their noise, infinite where the counts carry no information."""

    line_integrals: Tensor
    variance: Tensor


def transmission(counts: Tensor, I0: float | Tensor, electronic_sigma: float = 0.0) -> Transmission:
    """Log data of a transmission measurement, for weighted least squares.

    `I = Poisson(I0 exp(-A x)) + N(0, s_e^2)` gives, to first order, `y = -log(I / I0)` with variance
    `(I + s_e^2) / I^2` (Sauer and Bouman 1993; electronic noise: Thibault et al. 2006). Where `I <= 0` or is not a
    number the variance is infinite, so that the weight is zero, and y is 0. Below some ten quanta the first order is a
    poor law and the log data are biased upwards; the weights make such rays count little.

    Args:
        counts: detected quanta, offset corrected, any shape.
        I0: quanta without an object, > 0; a number or broadcastable (per view, per bin).
        electronic_sigma: standard deviation of the electronic noise in quanta.
    """
    counts = counts if counts.is_floating_point() else counts.to(torch.float32)
    blank = torch.as_tensor(I0, dtype=counts.dtype, device=counts.device)
    if not bool((blank > 0).all()):
        raise InputError("the number of quanta without an object (I0) must be positive")
    if electronic_sigma < 0:
        raise InputError(f"the electronic noise must not be negative, not {electronic_sigma}")
    seen = (counts > 0) & torch.isfinite(counts)
    safe = torch.where(seen, counts, 1.0)
    y = torch.where(seen, torch.log(blank / safe), 0.0)
    return Transmission(y, torch.where(seen, (safe + electronic_sigma**2) / safe**2, math.inf))


class Measurement:
    """`y = A x + n`, one measurement for each batch item or (batch 1) one for all.

    Noise-free measurements (standard deviation 0) are allowed. They have unit weights and `noise_level` 0 in place of
    1; `proximal` becomes the projection `v + A^+ (y - A v)` and `posterior_draw` the projection of a prior draw, the
    limits for sigma -> 0; what has no limit (`misfit_chi2`, `negative_log_likelihood`) raises `InputError`.

    Args:
        operator: `A`, or any callable with `linear=False`; then only `residual`, `misfit_chi2` and
            `negative_log_likelihood` are available (differentiable where the callable is).
        y: data `(B, *range)` or `(1, *range)`, which serves any number of samples.
        noise: the law of n, Gaussian:
            a number, the standard deviation; a tensor `(B,)`, one for each item; a tensor with as many dimensions as y
            that broadcasts against it, one for each entry (infinite: the entry does not count); or a whitening operator
            `W` with `W n` white of unit variance, such as `InverseCholesky(covariance)`.
            Where `A` ends in a `Diagonal` mask, give infinity at the entries that were not measured (or use
            `Subsample`), else they count as data in `misfit_chi2`.
        preconditioner: `p -> M` with M an approximate inverse of `A^H W^H W A + p`, which the physics may know; used by
            `proximal` and `posterior_draw` where none is given and no root.

    Attributes:
        operator, y: as given.
        whitening: `W`.
        noise_level: standard deviation of the whitened noise, 1 or (noise-free) 0.
    """

    def __init__(
        self,
        operator: LinearOperator | Callable[[Tensor], Tensor],
        y: Tensor,
        noise: float | Tensor | LinearOperator,
        *,
        linear: bool = True,
        preconditioner: Callable[[Tensor], TensorMap] | None = None,
    ) -> None:
        if linear and not isinstance(operator, LinearOperator):
            raise InputError("a callable that is no LinearOperator needs linear=False")
        self.operator = operator
        self.linear = linear
        self.preconditioner = preconditioner
        self.noise_level = 1.0
        counted: Tensor | None = None
        if isinstance(noise, LinearOperator):
            self.whitening = noise
        else:
            std = _standard_deviation(noise, y)
            known = torch.isfinite(std)
            if bool((std == 0).any()):
                self.noise_level = 0.0
                self.whitening = Diagonal(known)
            else:
                self.whitening = Diagonal(1 / std)
            counted = None if bool(known.all()) else known
        self.counted = counted  # which entries have weight; None: all
        self.y = y if counted is None else torch.where(counted, y, 0)
        if not bool(torch.isfinite(self.y).all()):
            raise InputError("the measurement holds values that are not finite where its noise is finite")

    @property
    def linear_operator(self) -> LinearOperator:
        """`A`; `InputError` when the operator is not linear."""
        if not self.linear or not isinstance(self.operator, LinearOperator):
            raise InputError(
                "this method needs a linear operator; for others use dps, pigdm, unit_steps, or daps with Langevin steps"
            )
        return self.operator

    def tangent(self, point: Tensor) -> Measurement:
        """The same as seen from the point p, to first order: `y - A(p) + J p = J x + n`; itself when A is linear."""
        if self.linear:
            return self
        tangent = Tangent(self.operator, point)
        noise = self.whitening if self.noise_level else 0.0
        return Measurement(tangent, self.y - self.operator(point) + tangent(point), noise)

    def whitened(self) -> tuple[LinearOperator, Tensor]:
        """`(W A, W y)`: the same measurement with white noise of standard deviation `noise_level`."""
        return Compose(self.whitening, self.linear_operator), self.whitening(self.y)

    @cached_property
    def whitened_normal(self) -> LinearOperator:
        """`A^H W^H W A`."""
        return Compose(self.whitening, self.linear_operator).normal

    def residual(self, x: Tensor) -> Tensor:
        """`W (A x - y)`, `(B, *range)`: at the truth it is the negative whitened noise."""
        return self.whitening(self.operator(x) - self.y)

    def gradient(self, x: Tensor) -> Tensor:
        """`A^H W^H W (A x - y)`: the gradient of `negative_log_likelihood`; noise-free, of `|A x - y|^2 / 2`."""
        return self.linear_operator.adjoint(self.whitening.adjoint(self.residual(x)))

    def misfit_chi2(self, x: Tensor, by: int | None = None) -> Tensor:
        """`|W (A x - y)|^2` over the number of real degrees of freedom; about 1 at the truth.

        A complex datum counts two, one without weight none. The estimate's own degrees of freedom are not subtracted,
        so a fit to the data comes out somewhat below 1.

        Args:
            x: `(B, *domain)`.
            by: a dimension of the range, counted with the batch: one value for each index along it (each view, coil).

        Returns:
            `(B,)`, or `(B, n)` with `by`; not a number where nothing counts.
        """
        self._require_noise("chi-square")
        r = self.residual(x)
        energy = r.abs() ** 2 if r.is_complex() else r**2
        freedom = torch.ones_like(energy) if self.counted is None else self.counted.to(energy.dtype).expand_as(energy)
        kept = 1 if by is None else by % r.ndim
        energy, freedom = (t.movedim(kept, 1).flatten(2 if by is not None else 1) for t in (energy, freedom))
        return energy.sum(-1) / (freedom.sum(-1) * (2 if r.is_complex() else 1))

    def negative_log_likelihood(self, x: Tensor) -> Tensor:
        """`|W (A x - y)|^2 / 2` for each item, `(B,)`: up to a constant that does not depend on x."""
        self._require_noise("likelihood")
        r = self.residual(x)
        return dot(r, r) / 2

    def proximal(
        self,
        v: Tensor,
        precision: float | Tensor,
        *,
        root: LinearOperator | None = None,
        iterations: int = 200,
        tolerance: float | Tensor = 1e-5,
        preconditioner: Callable[[Tensor], Tensor] | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """`argmin |W (A x - y)|^2 + p |x - v|^2`: the posterior mean for the prior `N(v, 1/p)`.

        Solved by conjugate gradients for the correction `x - v`, so v is the start and few iterations stay near it.

        Args:
            v: `(B, *domain)`.
            precision: p > 0: a number, one for each item `(B,)`, or with as many dimensions as v one for each entry.
                It makes no difference to a noise-free measurement unless it varies between entries.
            root: `L` for a prior covariance `L L^H / p` in place of `1/p`; x stays in `v + range(L)`.
            iterations: at most this many applications of `A^H A`, beside one for the right-hand side. Convergence takes
                some `5 sqrt(k)`, k being the ratio of `|W A|^2` to p.
            tolerance: relative residual at which an item is finished, a number or `(B,)`.
            preconditioner: approximate inverse of `A^H W^H W A + p`, or of `(L^H A^H W^H W A L + p)` with a root; see
                `circulant_preconditioner`.
            start: a better first guess than v, where there is one (not with a root).
        """
        p = self._precision(precision, v)
        first = None if start is None or root is not None else start - v
        return self._solve(v, -self.residual(v), p, root, iterations, tolerance, preconditioner, first)

    def posterior_draw(
        self,
        v: Tensor,
        precision: float | Tensor,
        noise: Noise | torch.Generator,
        *,
        root: LinearOperator | None = None,
        iterations: int = 200,
        tolerance: float | Tensor = 1e-5,
        preconditioner: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """An exact draw from `N(x; v, 1/p) N(y; A x, noise)`, one for each item of v.

        Perturb and MAP (Papandreou and Yuille 2010; Orieux, Feron and Giovannelli 2012):
        `argmin |W (A x - y) - e|^2 + p |x - v - d / sqrt(p)|^2` with white e and d. The covariance is exact as far as
        the conjugate gradients have converged; stopped early, some directions keep their prior spread.

        The arguments are those of `proximal`. The random numbers are d, then e.
        """
        p = self._precision(precision, v)
        noise = noise if isinstance(noise, Noise) else Noise([noise])
        d = noise.normal(v) / p.sqrt()
        prior_draw = v + (d if root is None else root(d))
        gap = -self.residual(prior_draw)
        gap = gap + self.noise_level * noise.normal(gap)
        return self._solve(prior_draw, gap, p, root, iterations, tolerance, preconditioner)

    def _solve(
        self,
        centre: Tensor,
        gap: Tensor,
        p: Tensor,
        root: LinearOperator | None,
        iterations: int,
        tolerance: float | Tensor,
        preconditioner: Callable[[Tensor], Tensor] | None,
        first: Tensor | None = None,
    ) -> Tensor:
        """`centre + L z` with `(L^H N L + p) z = L^H A^H W^H gap` and `N = A^H W^H W A`; noise-free without p."""
        noise_free = self.noise_level == 0
        if preconditioner is None and root is None and self.preconditioner is not None:
            preconditioner = self.preconditioner(p)
        if noise_free and p.ndim > 1:
            # The limit is the projection in the norm of p: substitute z = p^-1/2 z'.
            weight = Diagonal(p.rsqrt())
            root = weight if root is None else Compose(root, weight)
        normal, rhs = self.whitened_normal, self.linear_operator.adjoint(self.whitening.adjoint(gap))
        if root is not None:
            normal, rhs = Compose(root.H, normal, root), root.adjoint(rhs)
        z = conjugate_gradient(
            normal if noise_free else lambda z: torch.addcmul(normal(z), p, z),
            rhs,
            first,
            iterations=iterations,
            tolerance=tolerance,
            preconditioner=preconditioner,
        )
        return centre + (z if root is None else root(z))

    def _precision(self, precision: float | Tensor, v: Tensor) -> Tensor:
        p = torch.as_tensor(precision, dtype=v.real.dtype, device=v.device)
        if not bool((p > 0).all()):
            raise InputError("the precision of a proximal step must be positive")
        return _broadcast(p, v, "the precision")

    def _require_noise(self, what: str) -> None:
        if self.noise_level == 0:
            raise InputError(f"a noise-free measurement has no {what}; give the standard deviation of its noise")


def _standard_deviation(noise: float | Tensor, y: Tensor) -> Tensor:
    std = _broadcast(torch.as_tensor(noise, dtype=y.real.dtype, device=y.device), y, "the noise standard deviation")
    if not bool((std >= 0).all()):
        raise InputError("the noise standard deviation must be a number >= 0 everywhere")
    finite = std[torch.isfinite(std)]
    if bool((finite == 0).any()) and not bool((finite == 0).all()):
        raise InputError("noise of standard deviation 0 must hold for all entries or for none")
    return std


def _broadcast(value: Tensor, like: Tensor, name: str) -> Tensor:
    """A number, one value for each item, or one for each entry; a single value becomes 0-d."""
    if value.numel() == 1:
        return value.reshape(())
    if value.ndim == 1 and value.shape[0] == like.shape[0]:
        return expand(value, like)
    fits = all(n in (1, size) for n, size in zip(value.shape, like.shape, strict=False))
    if value.ndim != like.ndim or not fits:
        raise InputError(
            f"{name} has shape {tuple(value.shape)}: give a number, one value for each item, or one for each entry of "
            f"{tuple(like.shape)}"
        )
    return value
