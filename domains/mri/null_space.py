"""The noise of a scan without a noise scan, from the calibration region alone.

Neighbouring k-space samples of all coils obey linear relations: the calibration matrix, whose rows are the windows of k x k samples
of all coils, has low rank but for the noise (Uecker et al. 2014, ESPIRiT; Shin et al. 2014, SAKE). What lies in its null
space is noise, also where the outer k-space still holds signal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from domains.mri.noise import whitening_matrix

WIDEST = 5
"""Width of the windows at most."""

ROUNDS = 30
CONVERGED = 0.01


def null_space_covariance(calibration: Tensor, start: Tensor, rng: torch.Generator) -> Tensor | None:
    """Noise covariance `(C, C)`, `E[n n^H] / 2`, of calibration data `(C, h, w)`; None where no null space shows.

    A fixed point: whiten; take out the singular vectors above all those of white noise seen through the same windows; compare
    the coil covariance of the rest with that of simulated white noise from which the same directions were taken. Where they
    agree, the whitening was right.

    Args:
        calibration: a fully sampled box of k-space.
        start: a first guess of the covariance, in no direction too small: noise that looked larger would count as signal.
        rng: for the simulated noise.
    """
    coils, h, w = calibration.shape
    width = _width(coils, h, w)
    if width is None:
        return None
    parts = torch.randn((2, coils, h, w), generator=rng, dtype=torch.float64)
    noise = _windows(torch.complex(parts[0], parts[1]).to(calibration.device), width)
    levels = torch.linalg.eigvalsh(noise.mH @ noise)
    covariance = start
    for _ in range(ROUNDS):
        rows = _whitened_windows(calibration, covariance, width)
        energies, vectors = torch.linalg.eigh(rows.mH @ rows)
        rank = int((energies > levels[-1]).sum())
        if len(energies) - rank < max(2 * coils, 4):
            return None
        signal = vectors[:, len(energies) - rank :]
        left = torch.linalg.qr(rows @ signal).Q
        clean = noise - left @ (left.mH @ noise)
        expected = whitening_matrix(_coil_covariance(clean - (clean @ signal) @ signal.mH, coils))
        found = expected @ _coil_covariance(rows - (rows @ signal) @ signal.mH, coils) @ expected.mH
        root = torch.linalg.inv(whitening_matrix(covariance))
        covariance = root @ found @ root.mH
        if float(torch.linalg.matrix_norm(found - torch.eye(coils, device=found.device), 2)) < CONVERGED:
            break
    return covariance


def _width(coils: int, h: int, w: int) -> int | None:
    """The widest window with at least twice as many positions as samples, or None."""
    for k in range(min(WIDEST, h, w), 1, -1):
        if 2 * coils * k * k <= (h - k + 1) * (w - k + 1):
            return k
    return None


def _windows(data: Tensor, width: int) -> Tensor:
    """`(C, h, w)` to one row for each window, `(positions, C width^2)`."""
    windows = data.unfold(1, width, 1).unfold(2, width, 1)
    return windows.permute(1, 2, 0, 3, 4).reshape(-1, data.shape[0] * width**2)


def _whitened_windows(data: Tensor, covariance: Tensor, width: int) -> Tensor:
    white = whitening_matrix(covariance)
    return _windows(torch.einsum("ij,jyx->iyx", white, data.to(white.dtype)), width)


def _coil_covariance(rows: Tensor, coils: int) -> Tensor:
    part = rows.reshape(len(rows), coils, -1)
    return torch.einsum("ncp,ndp->cd", part, part.conj()) / (2 * len(rows) * part.shape[-1])
