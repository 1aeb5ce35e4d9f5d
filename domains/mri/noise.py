"""Receiver noise: its covariance between coils, prewhitening, and PCA coil compression.

Convention: `C = E[n n^H] / 2` per sample, so that white noise of standard deviation 1 in each part has `C = 1`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from suite.errors import InputError


def covariance_of(noise: Tensor) -> Tensor:
    """`(coil, sample)` pure noise to its covariance `(coil, coil)`. No mean is subtracted: noise has none.

    Raises:
        InputError: fewer samples than three for each coil.
    """
    coils, samples = noise.shape
    if samples < 3 * coils:
        raise InputError(f"the noise scan has {samples} samples, too few for the covariance of {coils} coils")
    noise = noise.to(torch.complex128)
    return noise @ noise.mH / (2 * samples)


def outer_noise(data: Tensor, mask: Tensor, share: float = 0.03) -> Tensor:
    """What is noise by most appearance, `(coil, sample)`: the acquired points farthest from the centre.

    Args:
        data: k-space `(slice, coil, ny, nx)`; mask: bool `(slice, 1, ny, nx)`.
        share: of the acquired points.
    """
    ny, nx = data.shape[-2:]
    v = (torch.arange(ny, device=data.device) - ny // 2).abs() / (ny / 2)
    u = (torch.arange(nx, device=data.device) - nx // 2).abs() / (nx / 2)
    radius = torch.hypot(v[:, None], u[None, :]).expand(data.shape[0], 1, ny, nx)
    radius = torch.where(mask, radius, -1.0)
    count = max(64 * data.shape[1], int(share * int(mask.sum())))
    edge = radius.flatten().topk(min(count, int(mask.sum()))).values[-1]
    chosen = (radius >= edge)[:, 0]
    return data.movedim(1, 0)[:, chosen]


def robust_covariance(noise: Tensor) -> Tensor:
    """The covariance of samples of which some may carry signal: those far out are left out, the loss made up for.

    Mahalanobis distances of Gaussian noise follow a known law; the half with the least energy decides, rescaled by what a
    half of a chi-square law holds (a one-step minimum covariance determinant, Rousseeuw 1984).
    """
    coils = noise.shape[0]
    c = covariance_of(noise)
    for _ in range(5):
        white = torch.linalg.solve_triangular(_cholesky(c), noise.to(torch.complex128), upper=False)
        distance = white.abs().square().sum(0) / 2  # Gamma(coils, 1) for Gaussian noise
        half = distance <= distance.median()
        c = covariance_of(noise[:, half]) / _half_share(coils)
    return c


def _half_share(coils: int) -> float:
    """Mean energy per coil of the lower half of a Gamma(coils, 1) law, over its whole mean."""
    gamma = torch.distributions.Gamma(
        torch.tensor(float(coils), dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    )
    grid = torch.linspace(0, coils + 12 * coils**0.5 + 12, 20001, dtype=torch.float64)[1:]
    density = gamma.log_prob(grid).exp()
    cumulative = density.cumsum(0) / density.sum()
    lower = cumulative <= 0.5
    return float((grid * density)[lower].sum() / density[lower].sum() / coils)


def _cholesky(c: Tensor) -> Tensor:
    level = c.diagonal().real.mean()
    root, failed = torch.linalg.cholesky_ex(c + 1e-9 * level * torch.eye(len(c), dtype=c.dtype, device=c.device))
    if int(failed) or not float(level) > 0:
        raise InputError(
            "the noise covariance of the coils is singular: a coil without noise, or two that are the same"
        )
    return root


def whitening_matrix(covariance: Tensor) -> Tensor:
    """`W` with `W C W^H = 1`: the inverse Cholesky factor (Pruessmann et al. 2001, appendix A)."""
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.solve_triangular(_cholesky(covariance), eye, upper=False)


def compression_matrix(calibration: Tensor, coils: int) -> Tensor:
    """Rows that keep the `coils` strongest combinations of whitened calibration data `(coil, sample)` (Huang et al. 2008).

    The rows are orthonormal, so the noise stays white.
    """
    data = calibration.to(torch.complex128)
    _, vectors = torch.linalg.eigh(data @ data.mH)
    return vectors.flip(1)[:, :coils].mH


def mix_coils(matrix: Tensor, data: Tensor) -> Tensor:
    """`matrix (new, old)` applied to the coil axis of `data (slice, old, ...)`."""
    return torch.einsum("ij,sj...->si...", matrix.to(data.dtype), data)
