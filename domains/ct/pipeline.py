"""The main job: a scan in, a reconstructed volume with its reference and its doubts out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from domains.ct.fbp import fbp
from domains.ct.physics import field_of_view_mask, hu_to_mu, mu_to_hu
from domains.ct.precondition import RampPreconditioner
from domains.ct.problem import GeometryConfig, Problem
from domains.ct.sirt import cgls, sirt
from domains.ct.tv import level_weights, pixel_information, tv
from suite.config import MainConfig
from suite.doubts import Wander
from suite.errors import InputError
from suite.measurement import Measurement
from suite.noise import Noise
from suite.operators import LinearOperator
from suite.posterior import METHODS
from suite.posterior.base import PosteriorMethod
from suite.prior import Prior, load_prior
from suite.trust import prior_share
from suite.volume import MBIR

CLASSICAL = ("fbp", "fdk", "tv", "sirt")
LEARNED: dict[str, type[PosteriorMethod]] = {
    name: METHODS[name] for name in ("dds", "ddnm", "diffpir", "red_diff", "dps", "pigdm", "mmps", "daps")
} | {MBIR.name: MBIR}
WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = WEIGHTS / "ct-axial.safetensors"

SETTINGS: dict[str, dict[str, Any]] = {
    "dds": {"warm_start": 0.15, "renoise": False, "momentum": 0.75, "iterations": 5, "tolerance": 0.01},
    "diffpir": {"warm_start": 0.3},
    "ddnm": {"warm_start": 0.3},
    "dps": {"warm_start": 0.3},
    "pigdm": {"warm_start": 0.3},
    "mmps": {"warm_start": 0.3, "iterations": 3},
    "daps": {"iterations": 10},
}
SETTINGS["mbir"] = SETTINGS["dds"] | {"coupling": 0.4, "symmetries": True}
"""What CT prefers to a method's own defaults; `warm_start`: the noise level, in units of 1000 HU, to start from TV.

From higher levels the gradients of a trained network lead pigdm and mmps astray, and so do more iterations of mmps, whose
covariance is then no longer symmetric.
"""

DETAIL_HU = 50.0
"""Size of the details of which the prior's share is told: soft tissue against soft tissue."""

STEPS = {"daps": 20, "mbir": 60}
"""Evaluations per sample where CT needs fewer or more than the method advertises on the closed-form problems
(docs/benchmarks.md); mbir averages over the mirror images it shows the prior."""


class ReconstructConfig(MainConfig):
    """Settings of `ct reconstruct`.

    Attributes:
        method: default `dds`; with several samples `daps`.
        geometry: fills gaps of the scan file.
        dicom: write a DICOM series also when the scan carries no header.
        options: arguments of the method, e.g. `options.iterations=5`.
        precision: of the network; `auto` is bfloat16 where the processor multiplies it natively, whose rounding (some HU)
            varies with the batch.
        batch: slices (times samples) that go through the network together.
        maps: write the maps of doubt (prior's share, wander, disagreement) also with one sample.
        memory_mb: what `mbir`, which takes all slices as one volume, may use beside the program itself.
    """

    method: (
        Literal[
            "fbp", "fdk", "tv", "sirt", "dds", "ddnm", "diffpir", "red_diff", "dps", "pigdm", "mmps", "daps", "mbir"
        ]
        | None
    ) = None
    geometry: GeometryConfig = GeometryConfig()
    dicom: bool = False
    options: dict[str, Any] = Field(default_factory=dict)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch: int = Field(default=16, ge=1)
    memory_mb: float = Field(default=8192, gt=0)
    maps: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """A part of the stack, `(S, 1, ny, nx)`, in 1/mm.

    Attributes:
        image: the reconstruction; the mean when there are several samples.
        reference: the classical one.
        std: sample standard deviation, or None.
        chi2: weighted misfit of each slice.
        evaluations: network evaluations per sample.
        share: how much of each pixel comes from the prior alone, 0 to 1, where there is a std.
        wander: how far the estimates still moved in the last steps, standard deviation, where maps are wanted.
    """

    image: Tensor
    reference: Tensor
    std: Tensor | None
    chi2: Tensor
    evaluations: int
    share: Tensor | None = None
    wander: Tensor | None = None


class ScaledProjector(LinearOperator):
    """`scale * A`, and its normal operator in one pass."""

    def __init__(self, operator: LinearOperator, scale: float) -> None:
        self.operator, self.scale = operator, scale
        self.domain_shape = operator.domain_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.operator.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(self.scale * y)


def choose_method(config: ReconstructConfig) -> str:
    """The method of a run.

    Raises:
        InputError: several samples of a method whose spread is no uncertainty.
    """
    name = config.method or ("daps" if config.samples > 1 else "dds")
    if name not in CLASSICAL and name not in LEARNED:
        raise InputError(f"this version has no method {name}; use one of {', '.join((*CLASSICAL, *LEARNED))}")
    if config.samples > 1 and (name in CLASSICAL or LEARNED[name].estimator == "point"):
        samplers = ", ".join(other for other, method in LEARNED.items() if method.estimator == "sample")
        raise InputError(
            f"{name} is a point estimator whose spread is no uncertainty; with --samples {config.samples} use {samplers}"
        )
    return name


def load_ct_prior(path: Path | None, device: torch.device) -> Prior:
    """The named prior, or the shipped one, checked for what CT needs."""
    return load_prior(path or SHIPPED, device, unit="HU", channels=1, condition_channels=0)


def water_level(problem: Problem, reference: Tensor) -> tuple[float, str | None]:
    """`mu_water` in 1/mm; where the scan does not tell it, the level of the object's main material, and a sentence."""
    if problem.scan.mu_water_per_mm is not None:
        return problem.scan.mu_water_per_mm, None
    values = reference.flatten()
    high = torch.quantile(values[:: max(1, values.numel() // 1_000_000)], 0.995)
    level = float(values[values > 0.4 * high].median()) if float(high) > 0 else 0.0
    if not level > 0:
        raise InputError(
            "the scan shows no object, so the prior's range cannot be set; give --set geometry.mu_water_per_mm=VALUE"
        )
    return level, (
        "The scan does not tell the attenuation of water: the prior, which knows HU, was set so that the object's main "
        f"material ({level:.4g} per mm) counts as water; the values written are in 1/mm."
    )


def classical(method: str, problem: Problem) -> Tensor:
    """A classical reconstruction in 1/mm, `(S, 1, ny, nx)`."""
    if method == "fdk":
        raise InputError("method fdk is for cone-beam scans; use fbp")
    y, weights = problem.data
    if method == "fbp":
        return fbp(problem.geometry, y, "hann")
    if method == "tv":
        return tv(problem.projector(), y, weights)
    return sirt(problem.projector(), y, weights)


def measurement_of(problem: Problem, prior: Prior, mu_water: float) -> Measurement:
    """The scan as a measurement of the prior's network values u: `A mu(u) = a A u + b A 1`."""
    projector = problem.projector()
    y, weights = problem.data
    zero, one = (float(hu_to_mu(prior.from_network(torch.tensor(u)), mu_water)) for u in (0.0, 1.0))
    scale = one - zero
    background = projector(torch.full((1, 1, *problem.geometry.image_shape), zero, device=y.device))
    weights = level_weights(y, weights)  # as TV: rays through air would dominate, and slow every solver down
    std = torch.where(weights > 0, weights.clamp_min(1e-30).rsqrt(), torch.inf)
    return Measurement(
        ScaledProjector(projector, scale),
        y - background,
        std,
        preconditioner=RampPreconditioner(projector, weights, scale),
    )


def scan_settings(problem: Problem, prior: Prior, mu_water: float) -> dict[str, Any]:
    """The weight of the data and the last noise level of dds, from the geometry and the noise of the scan.

    With n the noise of a pixel were all others known, in network units (`pixel_information`), N pixels that all views see
    and M rays that meet them: `strength = 4 sqrt(N / M) min(1, 0.2 / n)^0.4`, the fewer the data the more they count against
    a prior that is not perfect, and `finest = 0.07 n`, where the denoiser still takes out what the data step lets in. Fitted
    to slices of training and tuning subjects at 15 to 180 views and 1e4 to 1e6 photons.
    """
    projector = problem.projector()
    y, weights = problem.data
    mu_per_unit = prior.card.scale * mu_water / 1000
    information = pixel_information(projector, y, level_weights(y, weights)) * mu_per_unit
    seen = max(1, int(field_of_view_mask(problem.geometry).sum()))
    met = sum(len(rays.ray) for rays in projector.rays)
    return {
        "strength": 4 * math.sqrt(seen / met) * (0.2 * information).clamp_max(1) ** 0.4,
        "finest": (0.07 / information.clamp_min(1e-6)).clamp(0.002, 0.1),
    }


def build_method(
    name: str,
    options: dict[str, Any],
    prior: Prior,
    mu_to_network: Callable[[Tensor], Tensor],
    start: Tensor,
    derived: dict[str, Any] | None = None,
) -> PosteriorMethod:
    """The posterior method with CT's settings, those derived from the scan, and the user's over them.

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
        settings["init"] = mu_to_network(start)
    try:
        return LEARNED[name](**settings)
    except TypeError as error:
        raise InputError(f"method {name}: {error}") from None


def learned(
    method: str,
    problem: Problem,
    reference: Tensor,
    prior: Prior,
    mu_water: float,
    config: ReconstructConfig,
    identities: Sequence[str],
    clock: Callable[[str], AbstractContextManager[Any]],
) -> Reconstruction:
    """Posterior estimates of every slice of `problem` with a prior.

    Args:
        identities: one for each slice; with the seed they decide its random numbers.
    """
    measurement = measurement_of(problem, prior, mu_water)
    denoiser = prior.denoiser(precision=config.precision, clock=lambda: clock("network"))

    def to_network(mu: Tensor) -> Tensor:
        return prior.to_network(mu_to_hu(mu, mu_water))

    derived = scan_settings(problem, prior, mu_water) if method == "dds" else {}
    solver = build_method(method, dict(config.options), prior, to_network, reference, derived)
    like = torch.empty_like(reference)
    total, square, evaluations = torch.zeros_like(reference), torch.zeros_like(reference), 0
    maps, moved = config.samples > 1 or config.maps, torch.zeros_like(reference)
    for sample in range(config.samples):
        noise = Noise.of(config.seed, [f"{identity} sample {sample}" for identity in identities])
        denoiser.evaluations = 0
        wander = Wander()
        steps = config.steps or STEPS.get(method)
        u = solver.run(denoiser, measurement, like, noise=noise, steps=steps, callback=wander if maps else None)
        moved = moved + wander.std.square() / config.samples if maps else moved
        evaluations = max(evaluations, denoiser.evaluations)
        change = u - total
        total = total + change / (sample + 1)
        square = square + change * (u - total)
    mu = hu_to_mu(prior.from_network(total), mu_water)
    if method == "dds":
        # The measurement caps the weights of rays through air; these few iterations let them catch up, until the misfit is 1.
        mu = cgls(problem.projector(), *problem.data, iterations=5, start=mu)
    std = share = far = None
    mu_per_unit = prior.card.scale * mu_water / 1000
    if config.samples > 1:
        std = (square / (config.samples - 1)).sqrt() * mu_per_unit
    if maps:
        far = moved.sqrt() * mu_per_unit
        share = prior_share(measurement, like, DETAIL_HU / prior.card.scale, seed=config.seed)
    return Reconstruction(mu, reference, std, misfit(problem, mu), evaluations, share, far)


def misfit(problem: Problem, image: Tensor) -> Tensor:
    """Weighted misfit of an image in 1/mm, one value per slice."""
    y, weights = problem.data
    residual = problem.projector()(image) - y
    counted = (weights > 0).flatten(1).sum(1)
    return (weights * residual.square()).flatten(1).sum(1) / counted


def part(problem: Problem, rows: slice) -> Problem:
    """Some slices of a problem."""
    from dataclasses import replace

    y, weights = problem.data
    return replace(problem, data=type(problem.data)(y[rows], weights[rows]))


def finite(image: Tensor) -> np.ndarray[Any, Any]:
    """The image as an array; a reconstruction that is not finite is a fault, not a result."""
    if not bool(torch.isfinite(image).all()):
        raise RuntimeError("the reconstruction is not finite")
    return image.cpu().numpy()
