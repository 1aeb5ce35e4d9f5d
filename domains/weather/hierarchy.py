"""The hierarchical Gaussian model of an ensemble, and its exact predictive law given K members.

On anomalies `v_k = m + e_k`: a signal m with covariance B that the members of a date share, and independent deviations e_k
with covariance W. A target u (another member, or the truth) has `Cov(u, m) = G` and `Cov(u) = T`; for a member G = B and
T = B + W. Given the mean s of K members,

    u | s  ~  N( G (B + W/K)^-1 s,   T - G (B + W/K)^-1 G^T ),        K = 0:  N(0, T).

The spread given two members is thus larger than W: what two members cannot know of m belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-4  # smallest eigenvalue of a predictive covariance, of their mean: keeps a denoiser finite


@dataclass(frozen=True)
class Predictive:
    """`N(gain s, V diag(values) V^T + rest)` over fields flattened to `(B, n)`.

    Attributes:
        gain: `(r, r)` in the coordinates of `basis`.
        basis: `(n, r)`, orthonormal columns (empirical orthogonal functions).
        values, vectors: `(r,)` and `(n, r)`, of the covariance inside the basis.
        rest: `(n,)` variance of the directions outside the basis, 0 where a point is masked.
    """

    gain: Tensor
    basis: Tensor
    values: Tensor
    vectors: Tensor
    rest: Tensor

    def to(self, device: torch.device) -> Predictive:
        return Predictive(*(p.to(device) for p in (self.gain, self.basis, self.values, self.vectors, self.rest)))

    @property
    def variance(self) -> float:
        """Mean variance per point."""
        return float((self.values.sum() + (self._outside * self.rest).sum()) / self._points)

    @property
    def _outside(self) -> float:
        """Share of the directions that lie outside the basis."""
        return max(0.0, 1 - len(self.values) / self._points)

    @property
    def _points(self) -> int:
        return max(int((self.vectors.abs().sum(1) > 0).sum()), 1)

    def mean(self, seed_mean: Tensor) -> Tensor:
        """Conditional mean `(B, n)` given the mean of the seeds' anomalies `(B, n)` (zeros for K = 0)."""
        return seed_mean @ self.basis @ self.gain.T @ self.basis.T

    def posterior_mean(self, z: Tensor, sigma: Tensor) -> Tensor:
        """`E[r | r + sigma eps = z]` of the residual r about the mean; `z` `(B, n)`, `sigma` `(B, 1)`."""
        inside = z @ self.vectors
        square = sigma**2
        out = (inside * (self.values / (self.values + square))) @ self.vectors.T
        if self._outside > 0:
            out = out + self.rest / (self.rest + square) * (z - inside @ self.vectors.T)
        return out

    def error(self, sigma: Tensor) -> Tensor:
        """Root-mean-square error of `posterior_mean` per point, `(B, 1)`."""
        square = sigma**2
        total = (self.values * square / (self.values + square)).sum(1, keepdim=True)
        if self._outside > 0:
            total = total + self._outside * (self.rest * square / (self.rest + square)).sum(1, keepdim=True)
        return (total / self._points).sqrt()

    def left(self, sigma: float, eps: Tensor) -> Tensor:
        """White `eps` `(B, n)` with the covariance of the residual that is left when it was seen under noise `sigma`."""
        square = sigma**2
        inside = eps @ self.vectors
        out = (inside * (self.values * square / (self.values + square)).sqrt()) @ self.vectors.T
        if self._outside > 0:
            out = out + (self.rest * square / (self.rest + square)).sqrt() * (eps - inside @ self.vectors.T)
        return out

    def draw(self, eps: Tensor, sigma: float = 0.0) -> Tensor:
        """White `eps` `(B, n)` coloured to the residual's covariance plus `sigma^2`."""
        inside = eps @ self.vectors
        out = (inside * (self.values + sigma**2).sqrt()) @ self.vectors.T
        if self._outside > 0:
            out = out + (self.rest + sigma**2).sqrt() * (eps - inside @ self.vectors.T)
        return out


@dataclass(frozen=True)
class LinearGaussian:
    """The second moments of one lead and one kind of target, in the coordinates of `basis`; names as above.

    Attributes:
        basis: `(n, r)`.
        between, within, cross, target: B, W, G, T, each `(r, r)`.
        rest: `(n,)`, see `Predictive`.
    """

    basis: Tensor
    between: Tensor
    within: Tensor
    cross: Tensor
    target: Tensor
    rest: Tensor

    def predictive(self, seeds: int) -> Predictive:
        """The law of the target given `seeds` members."""
        G, T = self.cross.double(), self.target.double()
        if seeds == 0:
            gain, covariance = torch.zeros_like(G), T
        else:
            evidence = self.between.double() + self.within.double() / seeds
            ridge = 1e-6 * evidence.diagonal().mean() + 1e-12
            gain = torch.linalg.solve(evidence + ridge * torch.eye(len(evidence), dtype=torch.float64), G.T).T
            covariance = T - gain @ G.T
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        values = values.clamp_min(FLOOR * float(T.diagonal().mean()))
        return Predictive(gain.float(), self.basis, values.float(), self.basis @ vectors.float(), self.rest)


# --- estimation -------------------------------------------------------------------------------------------------------


def empirical_basis(fields: Tensor, rank: int) -> Tensor:
    """Leading EOFs `(n, r)` of fields `(N, n)`; all of space when `rank` reaches n."""
    n = fields.shape[1]
    if rank >= n:
        return torch.eye(n)
    x = fields.double()
    if n <= 3000:
        _, vectors = torch.linalg.eigh(x.T @ x)
        return vectors[:, -rank:].flip(1).float().contiguous()
    torch.manual_seed(0)
    return torch.svd_lowrank(fields, q=rank, niter=4)[2]


def second_moments(
    members: Tensor, seeds: Tensor, truth: Tensor | None, basis: Tensor, ring: int | None = None
) -> LinearGaussian:
    """The model fitted by the method of moments.

    Args:
        members: anomalies `(D, M, n)`, as targets.
        seeds: the same as conditions; they differ where dry points are drawn at random as targets.
        truth: `(D, n)` where the truth is the target.
        basis: `(n, r)`.
        ring: number of points of a homogeneous ring, whose covariances are averaged over all rotations.
    """
    dates, count = seeds.shape[:2]
    s = (seeds @ basis).double()
    centre = s.mean(1)
    if count > 1:
        deviation = (s - centre[:, None]).flatten(0, 1)
        within = _shrunk(deviation) * count / (count - 1)
    else:
        within = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64)
    between = _positive(_shrunk(centre) - within / count)
    if truth is None:
        m = (members @ basis).double().flatten(0, 1)
        cross, target = between, m.T @ m / len(m)
        outside = members.flatten(0, 1)
    else:
        u = (truth @ basis).double()
        cross, target = u.T @ centre / dates, _shrunk(u)
        outside = truth
    moments = [between, within, cross, target]
    if ring is not None and basis.shape[0] == basis.shape[1]:
        moments = [_rotated(moment, ring) for moment in moments]
    rest = _rest(outside, basis)
    between, within, cross, target = (moment.float() for moment in moments)
    return LinearGaussian(basis, between, within, cross, target, rest)


def _rest(fields: Tensor, basis: Tensor) -> Tensor:
    """Mean variance per direction left out by the basis, at every point that varies."""
    valid = fields.abs().amax(0) > 0
    left = int(valid.sum()) - basis.shape[1]
    if left <= 0:
        return torch.zeros(fields.shape[1])
    total, inside = fields.square().sum(1).mean(), (fields @ basis).square().sum(1).mean()
    return valid * ((total - inside) / left).clamp_min(1e-6)


def _shrunk(x: Tensor) -> Tensor:
    """Second moment of rows `(N, r)`, its off-diagonal shrunk as in Schaefer and Strimmer (2005), target "D"."""
    count = len(x)
    c = x.T @ x / count
    variance = ((x**2).T @ (x**2) / count - c**2) / max(count - 1, 1)
    off = 1 - torch.eye(len(c), dtype=c.dtype)
    weight = float(((variance * off).sum() / (c**2 * off).sum().clamp_min(1e-30)).clamp(0, 1))
    return c * (1 - weight * off)


def _positive(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0)) @ vectors.T


def _rotated(matrix: Tensor, ring: int) -> Tensor:
    """Average over all rotations of the ring; the flattened field is (channels, ring)."""
    channels = len(matrix) // ring
    block = matrix.reshape(channels, ring, channels, ring)
    turned = [torch.roll(block, (shift, shift), (1, 3)) for shift in range(ring)]
    return torch.stack(turned).mean(0).reshape(matrix.shape)
