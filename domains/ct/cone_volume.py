"""Reconstruction of a circular cone-beam scan: FDK, SIRT, TV, and `dds` and `mbir`, whose prior sees axial slices."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from domains.ct.cone import ConeProjector
from domains.ct.cone_problem import ConeProblem
from domains.ct.fdk import fdk
from domains.ct.physics import hu_to_mu, mu_to_hu
from domains.ct.pipeline import STEPS, ReconstructConfig, Reconstruction, ScaledProjector, build_method
from domains.ct.sirt import cgls, sirt
from domains.ct.tv import level_weights
from domains.ct.tv_volume import tv_volume, voxel_information
from suite.errors import InputError
from suite.measurement import Measurement
from suite.noise import Noise
from suite.prior import Prior

METHODS = ("fdk", "sirt", "tv", "dds", "mbir")
ITERATIONS = 8
"""Conjugate gradients of a data step: without a preconditioner it needs some more than a slice does."""

Clock = Callable[[str], AbstractContextManager[Any]]


def check_method(method: str) -> None:
    """Refuse, before any work, a method that does not serve cone beam.

    Raises:
        InputError: the sentence names those that do.
    """
    if method not in METHODS:
        raise InputError(f"method {method} does not serve cone beam; use one of {', '.join(METHODS)}")


def reconstruct_cone(
    problem: ConeProblem,
    method: str,
    prior: Prior | None,
    mu_water: float,
    config: ReconstructConfig,
    identity: str,
    clock: Clock,
    update: Callable[..., None] | None = None,
) -> Reconstruction:
    """The volume as a stack `(nz, 1, ny, nx)` in 1/mm, with FDK as its reference and one misfit for all slices.

    `dds` and `mbir` start from TV; `dds` is `mbir` whose slices are coupled by the data alone.

    Args:
        prior: of axial slices in HU; None for the classical methods.
        identity: with the number of the slice and the seed it decides its random numbers.

    Raises:
        InputError: a method that does not serve cone beam, or an option it does not have.
    """
    check_method(method)
    reference = fdk(problem.geometry, problem.data.line_integrals, "hann")
    evaluations = 0
    if prior is None:
        image = reference if method == "fdk" else _classical(method, problem)
    else:
        image, evaluations = _learned(method, problem, prior, mu_water, config, identity, clock, update)
    return Reconstruction(_stack(image), _stack(reference), None, _misfit(problem, image), evaluations)


def _classical(method: str, problem: ConeProblem) -> Tensor:
    y, weights = problem.data
    weights = level_weights(y, weights)
    return (tv_volume if method == "tv" else sirt)(problem.projector(), y, weights)


def _learned(
    method: str,
    problem: ConeProblem,
    prior: Prior,
    mu_water: float,
    config: ReconstructConfig,
    identity: str,
    clock: Clock,
    update: Callable[..., None] | None,
) -> tuple[Tensor, int]:
    projector, (y, weights) = problem.projector(), problem.data
    level = level_weights(y, weights)
    start = tv_volume(projector, y, level)
    measurement = _measurement(projector, y, level, prior, mu_water)

    def to_network(mu: Tensor) -> Tensor:
        return prior.to_network(mu_to_hu(mu, mu_water))

    given = dict(config.options)
    for name in ("axis", "priors", *(("coupling", "symmetries") if method == "dds" else ())):
        if name in given:
            raise InputError(f"method {method}: options.{name} is fixed for a cone-beam scan; leave it out")
    fixed: dict[str, Any] = {"axis": 2} | ({"coupling": 0.0, "symmetries": False} if method == "dds" else {})
    derived = _settings(projector, level, prior.card.scale * mu_water / 1000)
    solver = build_method("mbir", {"iterations": ITERATIONS} | given | fixed, prior, to_network, start, derived)
    total = config.steps or STEPS.get(method) or solver.steps

    def told(number: int, _x: Tensor, _mean: Tensor) -> None:
        if update is not None:
            update(number, total, "reverse steps")

    noise = Noise.of(config.seed, [f"{identity} {k}" for k in range(problem.slices)])
    denoiser = prior.denoiser(precision=config.precision, clock=lambda: clock("network"))
    u = solver.run(denoiser, measurement, torch.empty_like(start), noise=noise, steps=total, callback=told)
    mu = hu_to_mu(prior.from_network(u), mu_water)
    mu = cgls(projector, y, weights, iterations=5, start=mu)  # as dds of slices does: rays through air catch up
    return mu, denoiser.evaluations


def _settings(projector: ConeProjector, weights: Tensor, mu_per_unit: float) -> dict[str, float]:
    """`domains.ct.pipeline.scan_settings`, with voxels for pixels."""
    seen = float((projector.adjoint((weights > 0).to(weights.dtype)) > 0).sum())
    noise = 1 / (float(voxel_information(projector, weights)) * mu_per_unit)
    strength = 4 * math.sqrt(seen / float((weights > 0).sum())) * min(1.0, 0.2 / noise) ** 0.4
    return {"strength": strength, "finest": min(max(0.07 * noise, 0.002), 0.1)}


def _measurement(projector: ConeProjector, y: Tensor, weights: Tensor, prior: Prior, mu_water: float) -> Measurement:
    """The scan in network values u: `A mu(u) = a A u + b A 1`."""
    zero, one = (float(hu_to_mu(prior.from_network(torch.tensor(u)), mu_water)) for u in (0.0, 1.0))
    background = projector(y.new_full((1, 1, *projector.geometry.volume_shape), zero))
    std = torch.where(weights > 0, weights.clamp_min(1e-30).rsqrt(), torch.inf)
    return Measurement(ScaledProjector(projector, one - zero), y - background, std)


def _stack(volume: Tensor) -> Tensor:
    """`(1, 1, nz, ny, nx)` to `(nz, 1, ny, nx)`."""
    return volume[0].transpose(0, 1).contiguous()


def _misfit(problem: ConeProblem, image: Tensor) -> Tensor:
    y, weights = problem.data
    residual = problem.projector()(image) - y
    return (weights * residual.square()).sum()[None] / (weights > 0).sum()
