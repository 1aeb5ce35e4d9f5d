"""`mbir` for a circular cone-beam scan: the prior sees axial slices, the operator the whole volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from domains.ct.cone import ConeGeometry, ConeProjector
from domains.ct.physics import LogData, hu_to_mu, mu_to_hu
from domains.ct.pipeline import Reconstruction, ScaledProjector, build_method
from domains.ct.sirt import sirt
from domains.ct.tv import level_weights
from suite.measurement import Measurement
from suite.noise import Noise
from suite.prior import Prior


def reconstruct_cone(
    geometry: ConeGeometry,
    data: LogData,
    prior: Prior,
    mu_water: float,
    *,
    steps: int | None = None,
    seed: int = 0,
    identity: str = "",
    options: Mapping[str, Any] | None = None,
    clock: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Reconstruction:
    """A volume `(1, 1, nz, ny, nx)` in 1/mm, by mbir from SIRT.

    Args:
        geometry: the scan.
        data: line integrals and weights, each `(1, 1, V, R, K)`.
        prior: of axial slices in HU.
        mu_water: attenuation of water in 1/mm.
        steps: network evaluations, an upper bound.
        seed, identity: with the number of the slice they decide its random numbers.
        options: of `suite.volume.MBIR`; `orientations` in 2 (axial), 3 (coronal), 4 (sagittal).
        clock: context manager factory timing the network.

    Raises:
        InputError: data that do not fit the geometry, or an option that is not mbir's.
    """
    projector = ConeProjector(geometry)
    weights = level_weights(*data)
    reference = sirt(projector, data.line_integrals, weights)
    measurement = _measurement(projector, data.line_integrals, weights, prior, mu_water)

    def to_network(mu: Tensor) -> Tensor:
        return prior.to_network(mu_to_hu(mu, mu_water))

    derived = _settings(projector, weights, prior.card.scale * mu_water / 1000)
    given = {"axis": 2, "iterations": 8} | dict(options or {})
    method = build_method("mbir", given, prior, to_network, reference, derived)
    noise = Noise.of(seed, [f"{identity} {k}" for k in range(geometry.n_slices)])
    denoiser = prior.denoiser(clock=clock)
    u = method.run(denoiser, measurement, torch.empty_like(reference), noise=noise, steps=steps)
    mu = hu_to_mu(prior.from_network(u), mu_water)
    counted = (data.weights > 0).flatten(1).sum(1)
    chi2 = (data.weights * (projector(mu) - data.line_integrals).square()).flatten(1).sum(1) / counted
    return Reconstruction(mu, reference, None, chi2, denoiser.evaluations)


def _settings(projector: ConeProjector, weights: Tensor, mu_per_unit: float) -> dict[str, float]:
    """`domains.ct.pipeline.scan_settings`, with voxels for pixels."""
    density = projector.adjoint(weights)
    seen = density > 0
    noise = float((projector.geometry.plane.pixel_size_mm * density[seen].median()).rsqrt()) / mu_per_unit
    share = float(seen.sum()) / float((weights > 0).sum())
    strength = 4 * math.sqrt(share) * min(1.0, 0.2 / noise) ** 0.4
    return {"strength": strength, "finest": min(max(0.07 * noise, 0.002), 0.1)}


def _measurement(projector: ConeProjector, y: Tensor, weights: Tensor, prior: Prior, mu_water: float) -> Measurement:
    """The scan in network values u: `A mu(u) = a A u + b A 1`."""
    zero, one = (float(hu_to_mu(prior.from_network(torch.tensor(u)), mu_water)) for u in (0.0, 1.0))
    background = projector(y.new_full((1, 1, *projector.geometry.volume_shape), zero))
    std = torch.where(weights > 0, weights.clamp_min(1e-30).rsqrt(), torch.inf)
    return Measurement(ScaledProjector(projector, one - zero), y - background, std)
