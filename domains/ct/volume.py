"""`mbir` of CT: a stack of slices reconstructed as one volume, within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from domains.ct.physics import hu_to_mu, mu_to_hu
from domains.ct.pipeline import (
    STEPS,
    ReconstructConfig,
    Reconstruction,
    build_method,
    classical,
    measurement_of,
    misfit,
    part,
    scan_settings,
)
from domains.ct.problem import Problem
from domains.ct.sirt import cgls
from suite.errors import InputError
from suite.noise import Noise
from suite.prior import Prior
from suite.volume import StackMeasurement

BYTES_PER_PIXEL = 1024
"""Working memory of the shipped network: measured 400 in bfloat16, 700 in float32; the data step takes less."""

STRENGTH = 2.0
"""Weight of the data against that of dds: among mirror images the prior errs less in each step, and more weight pays."""

VOLUMES = 16
"""Volumes in single precision that are held at once: state, means, split and dual variables, references (measured: 14)."""

Clock = Callable[[str], AbstractContextManager[Any]]
Update = Callable[..., None]


def reconstruct_volume(
    problem: Problem,
    prior: Prior,
    mu_water: float,
    config: ReconstructConfig,
    identities: Sequence[str],
    clock: Clock,
    update: Update | None = None,
) -> Reconstruction:
    """All slices of `problem` as one volume, with a prior of slices and total variation across them.

    Memory stays within `config.memory_mb` beside the program itself: what the volumes leave of it decides how many slices go
    through network and data step together.

    Args:
        identities: one for each slice; with the seed they decide its random numbers.
        update: told the number of steps done and their total.

    Raises:
        InputError: an option that is not mbir's, several orientations of voxels that are far from cubic, a budget too small.
    """
    options = dict(config.options)
    _check(options, problem)
    groups = parts_within(problem, config.memory_mb)
    pieces = [part(problem, rows) for rows in groups]
    reference = torch.cat([classical("tv", piece) for piece in pieces])
    measurement = StackMeasurement([measurement_of(piece, prior, mu_water) for piece in pieces])
    pixels = (groups[0].stop - groups[0].start) * reference[0, 0].numel()
    denoiser = prior.denoiser(precision=config.precision, pixels=pixels, clock=lambda: clock("network"))

    def to_network(mu: Tensor) -> Tensor:
        return prior.to_network(mu_to_hu(mu, mu_water))

    derived = _settings(pieces, prior, mu_water, options)
    method = build_method("mbir", options, prior, to_network, reference, derived)
    total = config.steps or STEPS["mbir"]

    def told(number: int, _x: Tensor, _mean: Tensor) -> None:
        if update is not None:
            update(number, total, "reverse steps")

    noise = Noise.of(config.seed, [f"{identity} sample 0" for identity in identities])
    u = method.run(denoiser, measurement, torch.empty_like(reference), noise=noise, steps=total, callback=told)
    mu = hu_to_mu(prior.from_network(u), mu_water)
    # As dds: the measurement caps the weights of rays through air; these few iterations let them catch up.
    finished = (
        cgls(piece.projector(), *piece.data, iterations=5, start=mu[rows])
        for piece, rows in zip(pieces, groups, strict=True)
    )
    mu = torch.cat(list(finished))
    chi2 = torch.cat([misfit(piece, mu[rows]) for piece, rows in zip(pieces, groups, strict=True)])
    return Reconstruction(mu, reference, None, chi2, denoiser.evaluations)


def parts_within(problem: Problem, memory_mb: float) -> list[slice]:
    """Consecutive slices that fit the budget together.

    Raises:
        InputError: the volumes alone exceed it; the sentence says what would do.
    """
    pixels = problem.geometry.image_shape[0] * problem.geometry.image_shape[1]
    held, each = VOLUMES * 4 * pixels * problem.slices / 2**20, BYTES_PER_PIXEL * pixels / 2**20
    size = int((memory_mb - held) / each)
    if size < 1:
        raise InputError(
            f"method mbir holds {problem.slices} slices at once and needs {held + each:.0f} MB or more, not {memory_mb:g}; "
            "give --set memory_mb=VALUE, or reconstruct fewer slices"
        )
    return [slice(first, min(first + size, problem.slices)) for first in range(0, problem.slices, size)]


def _settings(pieces: Sequence[Problem], prior: Prior, mu_water: float, options: dict[str, Any]) -> dict[str, Any]:
    """What dds derives from each slice's noise, with `STRENGTH`; in other orientations too the stack has the median of both."""
    found = [scan_settings(piece, prior, mu_water) for piece in pieces]
    for one in found:
        one["strength"] = STRENGTH * one["strength"]
    joined = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    if set(options.get("orientations") or [0]) == {0}:
        return joined
    return {name: float(values.median()) for name, values in joined.items()}


def _check(options: dict[str, Any], problem: Problem) -> None:
    for name in ("axis", "priors"):
        if name in options:
            raise InputError(f"method mbir: options.{name} is fixed for a stack of slices; leave it out")
    orientations = options.get("orientations")
    if orientations is None:
        return
    known = isinstance(orientations, list | tuple) and set(orientations) <= {0, 2, 3} and len(set(orientations)) > 0
    if not known or len(set(orientations)) != len(orientations):
        raise InputError(
            f"method mbir: options.orientations is {orientations!r}; give some of 0 (axial), 2 (coronal), 3 (sagittal)"
        )
    affine, pixel = problem.scan.affine, problem.geometry.pixel_size_mm
    height = 1.0 if affine is None else float(torch.from_numpy(affine[:3, 2]).norm())
    if set(orientations) != {0} and not 0.5 < height / pixel < 2:
        raise InputError(
            f"method mbir: slices {height:g} mm apart with pixels of {pixel:g} mm make no pictures that the prior knows in "
            "other orientations; use options.orientations=[0]"
        )
