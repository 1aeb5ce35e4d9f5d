"""The main job: whitened k-space in, images with their reference and their doubts out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from domains.mri.classical import CLASSICAL, classical
from domains.mri.problem import MOST_COILS, Problem
from domains.mri.training import PERCENTILE, UNIT
from domains.mri.tuning import held_back, held_misfit, search
from suite.config import Config, MainConfig
from suite.contrasts import SharedEdges
from suite.denoiser import Denoiser
from suite.errors import InputError
from suite.linalg import expand
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import Diagonal, LinearOperator, ToComplex
from suite.posterior import METHODS
from suite.posterior.base import PosteriorMethod, error_variance, prior_std
from suite.posterior.dds import DDS
from suite.prior import Prior, load_prior
from suite.trust import prior_share
from suite.volume import MBIR

LEARNED: dict[str, type[PosteriorMethod]] = {
    name: METHODS[name] for name in ("dds", "daps", "pigdm", "mmps", "red_diff", "ddnm", "diffpir", "dps")
} | {method.name: method for method in (MBIR, SharedEdges)}
WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = WEIGHTS / "mri-axial.safetensors"

SETTINGS: dict[str, dict[str, Any]] = {
    "dds": {"warm_start": 0.1, "renoise": False, "momentum": 0.75, "iterations": 15, "tolerance": 0.01},
    "diffpir": {"warm_start": 0.3},
    "ddnm": {"warm_start": 0.3},
    "daps": {"iterations": 20, "tolerance": 1e-3},
}
SETTINGS |= {name: SETTINGS["dds"] | {"coupling": coupling} for name, coupling in (("mbir", 0.3), ("contrasts", 0.5))}
"""What MRI prefers to a method's own defaults; `warm_start`: the noise level, in network units, to start from CG-SENSE."""

STEPS: dict[str, int] = {"dds": 30, "mbir": 30, "contrasts": 30, "daps": 20}
"""Evaluations per sample where MRI needs another number than the method advertises."""


DETAIL = 0.1
"""Size of the details of which the prior's share is told, over the 99th percentile of the magnitude: tissue against tissue."""

COUPLED = ("mbir", "contrasts")
"""Methods that take several 2D problems as one, see `domains.mri.coupled`."""


class CoilsConfig(Config):
    """Coil maps.

    Attributes:
        most: more coils are compressed to so many combinations.
        calibration: width of the calibration region at most.
        crop: pixels whose ESPIRiT eigenvalue is below this lie outside the support, where the image is 0.
    """

    most: int = Field(default=MOST_COILS, ge=1)
    calibration: int = Field(default=24, ge=6)
    crop: float = Field(default=0.9, ge=0, lt=1)


class ReconstructConfig(MainConfig):
    """Settings of `mri reconstruct`.

    Attributes:
        method: default `dds`; with several samples `daps`.
        dicom: write DICOM series too.
        coils: coil maps and compression.
        layout: names of the axes of a bare array, e.g. `[slice, spoke, coil, sample]`.
        options: arguments of the method, e.g. `options.iterations=5`.
        precision: of the network; `auto` is bfloat16 where the processor multiplies it natively.
        tune: choose strength and finest of dds for this scan, by how well they predict samples held back.
        batch: slices that go through the network together.
    """

    method: (
        Literal[
            "zero_filled", "sense", "wavelet", "tv", "grappa",
            "dds", "daps", "pigdm", "mmps", "red_diff", "ddnm", "diffpir", "dps", "mbir", "contrasts",
        ]
        | None
    ) = None  # fmt: skip
    dicom: bool = False
    coils: CoilsConfig = CoilsConfig()
    layout: list[str] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tune: bool = False
    batch: int = Field(default=8, ge=1)


@dataclass(frozen=True)
class Reconstruction:
    """A part of the stack, complex `(S, 1, ny, nx)`, in the units of the file.

    Attributes:
        image: the reconstruction; the mean when there are several samples.
        reference: CG-SENSE (for CG-SENSE and zero-filling themselves: zero-filled).
        std: sample standard deviation of the magnitude, or None.
        chi2: misfit of each slice.
        left: what noise alone would leave of it, see `noise_left`.
        scale: network units per file unit, undone in `image`; 1 without a network.
        evaluations: network evaluations per sample.
        share: how much of each pixel comes from the prior alone, 0 to 1, where there is a std.
        coupling: of each slice with the other contrasts, where it was chosen.
    """

    image: Tensor
    reference: Tensor
    std: Tensor | None
    chi2: Tensor
    scale: Tensor
    evaluations: int
    left: Tensor
    share: Tensor | None = None
    coupling: Tensor | None = None


def choose_method(config: ReconstructConfig) -> str:
    """The method of a run.

    Raises:
        InputError: several samples of a method whose spread is no uncertainty, or tuning of another method than dds.
    """
    name = config.method or ("daps" if config.samples > 1 else "dds")
    if config.tune and name != "dds":
        raise InputError(f"--tune chooses settings of dds, and the method is {name}")
    if config.samples > 1 and (name in CLASSICAL or LEARNED[name].estimator == "point"):
        samplers = ", ".join(other for other in LEARNED if LEARNED[other].estimator == "sample")
        raise InputError(
            f"{name} is a point estimator whose spread is no uncertainty; with --samples {config.samples} use {samplers}"
        )
    return name


def load_mri_prior(path: Path | None, device: torch.device) -> Prior:
    """The named prior, or the shipped one, checked for what MRI needs."""
    return load_prior(path or SHIPPED, device, unit=UNIT, channels=2, condition_channels=0)


def network_scale(image: Tensor) -> Tensor:
    """The 99th percentile of the magnitude of each slice `(S,)`: what a network value of 1 stands for.

    From an image of the measured data (CG-SENSE), never from the truth. An empty slice takes the largest of the others.
    """
    values = image.abs().flatten(1)
    rank = min(values.shape[1], max(1, math.ceil(PERCENTILE * values.shape[1])))
    levels = values.kthvalue(rank, dim=1).values
    floor = max(0.02 * float(levels.max()), 1e-20)
    return torch.where(levels > floor, levels, levels.max().clamp_min(1e-20))


def from_network(problem: Problem, scale: Tensor) -> LinearOperator:
    """Network values `(S, 2, h, w)`, the parts of the image within the box of the support, to whitened images `(S, 1, ny, nx)`."""
    return problem.window() @ Diagonal(expand(scale, problem.maps.real)) @ ToComplex()


def to_network(problem: Problem, scale: Tensor, image: Tensor) -> Tensor:
    """What `from_network` makes this whitened image of, within the box."""
    return ToComplex().adjoint(problem.window().adjoint(image) / expand(scale, image))


def measurement_of(problem: Problem, scale: Tensor) -> Measurement:
    """The scan as a measurement of network values: `A from_network(u)`, white noise of 1."""
    return Measurement(problem.operator() @ from_network(problem, scale), problem.data, 1.0)


def scan_settings(problem: Problem, scale: Tensor) -> dict[str, Any]:
    """The weight of the data and the last noise level of dds, from the sampling and the noise of the scan.

    `strength = R / 3` (at least 1), R the acceleration: the fewer the data, the more they count against a prior that is not
    perfect. `finest = n / sqrt(strength)`, n the noise of a fully sampled pixel in network units (whitened noise is 1 and the maps
    have unit norm): the last data step then has its nominal weight, and chi-square comes out near 1. Fitted to slices of held-out
    subjects at 4 to 8 times and 20 to 30 dB, and to held-back samples of an in-vivo scan.
    """
    strength = max(1.0, problem.acceleration / 3)
    return {"strength": strength, "finest": (1 / math.sqrt(strength) / scale.double()).clamp(0.001, 0.1)}


def noise_left(
    problem: Problem, measurement: Measurement, solver: PosteriorMethod, denoiser: Denoiser, like: Tensor, noise: Noise
) -> Tensor:
    """What the last data step leaves of pure noise, `(S,)`: `|(1 - A G) n|^2 / |n|^2`, G from the data to the image.

    A fit follows some of the noise, so that the misfit of a good one lies below 1, the more so the fewer the data: the residual
    has fewer degrees of freedom than the data. Told by one random n. How the network's answer follows the noise is not counted.
    For methods without such a step it is 1.
    """
    one = torch.ones(len(like), device=like.device)
    if type(solver) is not DDS or solver.finest is None:
        return one
    level = torch.as_tensor(solver.finest, dtype=torch.float64, device=like.device).reshape(-1, 1, 1, 1)
    t = denoiser.process.time_of_log_snr(-level.log())
    variance = solver.weight(error_variance(denoiser.process, t, prior_std(denoiser, solver.data_std)))
    n = torch.where(problem.mask, noise.normal(torch.empty_like(problem.data)), 0)
    probe = Measurement(measurement.operator, n, 1.0)
    fit = probe.proximal(torch.zeros_like(like), 1 / variance.to(like.dtype), iterations=40, tolerance=1e-3)
    return probe.residual(fit).abs().square().flatten(1).sum(1) / n.abs().square().flatten(1).sum(1).clamp_min(1e-12)


def build_method(
    name: str, options: dict[str, Any], prior: Prior, start: Tensor, derived: dict[str, Any] | None = None
) -> PosteriorMethod:
    """The posterior method with MRI's settings, those derived from the scan, and the user's over them.

    Raises:
        InputError: an option it does not have, or a value of the wrong kind.
    """
    settings = SETTINGS.get(name, {}) | (derived or {}) | options
    defaults = {key: option.default for key, option in inspect.signature(LEARNED[name]).parameters.items()}
    for key, value in options.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        default = SETTINGS.get(name, {}).get(key, defaults.get(key))
        if isinstance(default, int | float) and (not number or (key == "warm_start" and value <= 0)):
            raise InputError(f"method {name}: options.{key} is {value!r}, and a number like {default!r} is needed")
    level = settings.pop("warm_start", None)
    if level is not None:
        ratio = torch.tensor(float(level), dtype=torch.float64)
        settings["start"] = float(prior.process.time_of_log_snr(-ratio.log()))
        settings["init"] = start
    try:
        return LEARNED[name](**settings)
    except TypeError as error:
        raise InputError(f"method {name}: {error}") from None


def reconstruct(
    method: str,
    problem: Problem,
    prior: Prior | None,
    config: ReconstructConfig,
    identities: Sequence[str],
    clock: Callable[[str], AbstractContextManager[Any]],
    factors: Mapping[str, float] | None = None,
) -> Reconstruction:
    """Every slice of `problem`, by a classical method or with a prior; `factors` as for `learned`."""
    reference = classical("zero_filled" if method in ("zero_filled", "sense") else "sense", problem)
    if prior is None:
        image = classical(method, problem)
        image = image if method in ("zero_filled", "grappa") else supported(problem, image)
        one = torch.ones(len(image))
        return _in_units(problem, image, reference, None, one, 0)
    scale = network_scale(reference)
    return learned(method, problem, reference, scale, prior, config, identities, clock, factors)


def supported(problem: Problem, image: Tensor) -> Tensor:
    """The image with 0 where the maps are 0: there it is not part of the model."""
    inside = problem.maps.abs().sum(1, keepdim=True) > 0
    return torch.where(inside, image, 0)


def learned(
    method: str,
    problem: Problem,
    reference: Tensor,
    scale: Tensor,
    prior: Prior,
    config: ReconstructConfig,
    identities: Sequence[str],
    clock: Callable[[str], AbstractContextManager[Any]],
    factors: Mapping[str, float] | None = None,
) -> Reconstruction:
    """Posterior estimates of every slice with a prior.

    Args:
        identities: one for each slice; with the seed they decide its random numbers.
        factors: on the `scan_settings` of dds, as `tuned` finds them.
    """
    measurement = measurement_of(problem, scale)
    denoiser = prior.denoiser(precision=config.precision, clock=lambda: clock("network"))
    to_image, start = from_network(problem, scale), to_network(problem, scale, reference)
    derived = {}
    if method == "dds":
        derived = {name: (factors or {}).get(name, 1.0) * v for name, v in scan_settings(problem, scale).items()}
    solver = build_method(method, dict(config.options), prior, start, derived)
    total, evaluations = torch.zeros_like(reference), 0
    mean, square = torch.zeros_like(reference.real), torch.zeros_like(reference.real)
    for sample in range(config.samples):
        noise = Noise.of(config.seed, [f"{identity} sample {sample}" for identity in identities])
        denoiser.evaluations = 0
        u = solver.run(
            denoiser, measurement, torch.empty_like(start), noise=noise, steps=config.steps or STEPS.get(method)
        )
        evaluations = max(evaluations, denoiser.evaluations)
        image = supported(problem, to_image(u))
        total = total + (image - total) / (sample + 1)
        change = image.abs() - mean
        mean = mean + change / (sample + 1)
        square = square + change * (image.abs() - mean)
    std = share = None
    if config.samples > 1:
        std = (square / (config.samples - 1)).sqrt()
        share = prior_share(measurement, torch.empty_like(start), DETAIL, seed=config.seed).mean(1, keepdim=True)
        share = supported(problem, problem.window().forward(share))
    noise = Noise.of(config.seed, [f"{identity} misfit" for identity in identities])
    left = noise_left(problem, measurement, solver, denoiser, start, noise)
    found = _in_units(problem, total, reference, std, scale, evaluations)
    return replace(found, left=left, share=share)


def tuned(
    problem: Problem, prior: Prior, config: ReconstructConfig, clock: Callable[[str], AbstractContextManager[Any]]
) -> list[dict[str, float]]:
    """Factors on `scan_settings`, each with the misfit of samples held back of these slices.

    Raises:
        InputError: as `held_back`.
    """
    fitted, held = held_back(problem)
    reference = supported(fitted, classical("sense", fitted))
    scale = network_scale(reference)
    identities = [f"tune {k}" for k in range(problem.slices)]

    def misfit(factors: dict[str, float]) -> float:
        found = learned("dds", fitted, reference, scale, prior, config, identities, clock, factors)
        return held_misfit(problem, held, found.image / problem.unit())

    return search(misfit)


def _in_units(
    problem: Problem, image: Tensor, reference: Tensor, std: Tensor | None, scale: Tensor, evaluations: int
) -> Reconstruction:
    unit = problem.unit()
    chi2 = problem.misfit(image)
    spread = None if std is None else std * unit
    return Reconstruction(image * unit, reference * unit, spread, chi2, scale, evaluations, torch.ones_like(chi2))
