"""Classical reconstructions of whitened problems, with weights that come from the noise and the data alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from domains.mri.grappa import grappa
from domains.mri.noise import mix_coils
from domains.mri.physics import ridge, ridge_weight, rss
from domains.mri.problem import Problem
from domains.mri.tv import total_variation
from domains.mri.wavelet import l1_wavelet
from suite.errors import InputError
from suite.linalg import operator_norm
from suite.operators import FFT

CLASSICAL = ("zero_filled", "sense", "wavelet", "tv", "grappa")
WAVELET_WEIGHT = 0.5
TV_WEIGHT = 0.4


def classical(method: str, problem: Problem) -> Tensor:
    """A whitened complex image `(S, 1, ny, nx)` by one of `CLASSICAL`.

    Raises:
        InputError: `grappa` on a sampling it cannot serve.
    """
    if method == "sense":
        return sense(problem)
    if method == "grappa":
        if problem.fourier is not None:
            raise InputError("grappa needs data on a grid; for a trajectory use sense, wavelet, tv or dds")
        axes = tuple(a for a in (-2, -1) if a not in problem.axes)
        raw = FFT(axes)(problem.data) if axes else problem.data
        return combined(problem, FFT().adjoint(grappa(raw, problem.mask)))
    if method == "zero_filled":
        return combined(problem, problem.coil_images())
    operator, start = problem.operator(), sense(problem, iterations=10)
    curvature = 1.0 if problem.fourier is None else 1.02 * operator_norm(operator, start[:1], iterations=15) ** 2
    solve, weight = (l1_wavelet, WAVELET_WEIGHT) if method == "wavelet" else (total_variation, TV_WEIGHT)
    return solve(operator, problem.data, start, weight * noise_share(problem), curvature)


def sense(problem: Problem, iterations: int = 40) -> Tensor:
    """CG-SENSE (Pruessmann et al. 2001), see `domains.mri.physics.ridge_weight`."""
    operator = problem.operator()
    rhs = operator.adjoint(problem.data)
    return ridge(operator, rhs, ridge_weight(rhs, problem.maps, problem.acceleration), iterations)


def noise_share(problem: Problem) -> Tensor:
    """Standard deviation of the noise (both parts) in `A^H y` at a pixel: the root of twice the sampled share, `(S,)`."""
    return (2 * problem.mask.flatten(1).sum(1) / math.prod(problem.maps.shape[-2:])).sqrt()


def combined(problem: Problem, images: Tensor) -> Tensor:
    """Coil images to one: the root sum of squares of the file's own coils over `unit()`, with the phase of the maps.

    Where the maps are zero the phase is that of the strongest coil.
    """
    along = (problem.maps.conj() * images).sum(1, keepdim=True)
    strongest = images.gather(1, images.abs().argmax(1, keepdim=True))
    phase = torch.sgn(torch.where(along == 0, strongest, along))
    return rss(mix_coils(problem.mixing, images)) / problem.unit() * phase
