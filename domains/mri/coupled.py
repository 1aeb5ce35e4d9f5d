"""Slices or contrasts of a scan reconstructed together: `mbir` couples neighbouring slices, `contrasts` shared edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from domains.mri.classical import classical
from domains.mri.pipeline import (
    STEPS,
    ReconstructConfig,
    Reconstruction,
    build_method,
    from_network,
    measurement_of,
    network_scale,
    scan_settings,
    supported,
    to_network,
)
from domains.mri.problem import Problem
from domains.mri.tuning import held_back, held_misfits
from suite.errors import InputError
from suite.noise import Noise
from suite.operators import FFT
from suite.prior import Prior
from suite.volume import StackMeasurement

COUPLINGS = (0.0, 0.5, 1.5)
"""What `contrasts` tries; each contrast takes the one with which its own samples, held back, are predicted best."""

WORTHWHILE = 0.01
"""So much better than apart, as a share of the misfit, a prediction must be before contrasts are coupled."""

SMOOTH = 16
"""The phase that is common to a slice is that of its image at this many pixels across."""


def groups_of(method: str, problem: Problem) -> list[list[int]]:
    """The 2D problems that are solved together: the slices of one frame, or (`contrasts`) all contrasts of one slice.

    Raises:
        InputError: a scan with a single contrast.
    """
    frames = problem.kspace.data.shape[: len(problem.kspace.extra)]
    count = 1
    for n in frames:
        count *= n
    slices = problem.slices // count
    if method == "mbir":
        return [list(range(k * slices, (k + 1) * slices)) for k in range(count)]
    if count == 1:
        raise InputError(
            f"{problem.kspace.name}: holds a single contrast, and the method contrasts couples several; use dds"
        )
    return [[f * slices + k for f in range(count)] for k in range(slices)]


def common_phase(image: Tensor) -> Tensor:
    """Unit numbers `(S, 1, ny, nx)` with the phase of each image `(S, 1, ny, nx)` at low resolution."""
    window = torch.ones(1, device=image.device)
    for n in image.shape[-2:]:
        place = (torch.arange(n, device=image.device) - n // 2) / SMOOTH
        window = window[..., None] * torch.exp(-0.5 * (place * 2) ** 2)
    low = FFT().adjoint(window[0] * FFT()(image))
    phase = torch.sgn(low)
    return torch.where(phase == 0, torch.ones_like(phase), phase)


def reconstruct_group(
    method: str,
    problem: Problem,
    prior: Prior,
    config: ReconstructConfig,
    identities: Sequence[str],
    clock: Callable[[str], AbstractContextManager[Any]],
) -> Reconstruction:
    """All 2D problems of a group together, a point estimate; `contrasts` chooses its coupling unless it is given.

    Raises:
        InputError: data along a trajectory, or an option that the method does not have.
    """
    if method != "contrasts" or "coupling" in config.options:
        return _together(method, problem, prior, config, identities, clock)

    def solved(of: Problem, coupling: float, steps: int | None) -> Reconstruction:
        options = config.options | {"coupling": coupling}
        tried = config.model_copy(update={"options": options, "steps": steps})
        return _together(method, of, prior, tried, identities, clock)

    fitted, held = held_back(problem)
    steps = config.steps or STEPS[method]
    trials = [solved(fitted, c, -(-steps // 2)) for c in COUPLINGS]
    misfits = torch.stack([held_misfits(problem, held, t.image / problem.unit()) for t in trials])
    misfits[0] *= 1 - WORTHWHILE
    chosen = misfits.argmin(0)
    finals = {k: solved(problem, COUPLINGS[k], config.steps) for k in chosen.unique().tolist()}

    def picked(name: str) -> Tensor:
        return torch.stack([getattr(finals[k], name)[row] for row, k in enumerate(chosen.tolist())])

    image, reference, chi2, scale, left = map(picked, ("image", "reference", "chi2", "scale", "left"))
    evaluations = sum(t.evaluations for t in (*trials, *finals.values()))
    coupling = torch.tensor(COUPLINGS)[chosen.cpu()]
    return Reconstruction(image, reference, None, chi2, scale, evaluations, left, coupling=coupling)


def _together(
    method: str,
    problem: Problem,
    prior: Prior,
    config: ReconstructConfig,
    identities: Sequence[str],
    clock: Callable[[str], AbstractContextManager[Any]],
) -> Reconstruction:
    """All 2D problems of a group together, with one coupling.

    Slices can only be compared when they agree on phase and scale: the smooth phase of each one's CG-SENSE image goes into
    its coil maps (the prior knows every smooth phase), and the stack has one scale. Contrasts keep their own.
    """
    reference = classical("sense", problem)
    scale = network_scale(reference)
    phase = torch.ones_like(reference)
    derived = dict(scan_settings(problem, scale))
    if method == "mbir":
        scale = scale.median().expand_as(scale)
        derived = dict(scan_settings(problem, scale))
        phase = common_phase(reference)
        problem = replace(problem, maps=problem.maps * phase)
    else:
        derived["contrasts"] = problem.slices
    parts = [problem.part(slice(k, k + config.batch)) for k in range(0, problem.slices, config.batch)]
    scales = scale.split(config.batch)
    measurement = StackMeasurement([measurement_of(p, s) for p, s in zip(parts, scales, strict=True)])
    start = to_network(problem, scale, reference * phase.conj())
    denoiser = prior.denoiser(precision=config.precision, clock=lambda: clock("network"))
    solver = build_method(method, dict(config.options), prior, start, derived)
    noise = Noise.of(config.seed, [f"{identity} sample 0" for identity in identities])
    u = solver.run(denoiser, measurement, torch.empty_like(start), noise=noise, steps=config.steps or STEPS.get(method))
    image = supported(problem, from_network(problem, scale)(u))
    chi2 = torch.cat([p.misfit(x) for p, x in zip(parts, image.split(config.batch), strict=True)])
    unit = problem.unit()
    return Reconstruction(
        image * phase * unit, reference * unit, None, chi2, scale, denoiser.evaluations, torch.ones_like(chi2)
    )
