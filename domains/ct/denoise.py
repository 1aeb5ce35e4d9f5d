"""Images with noise in, without it out: for series whose raw data are gone, the everyday case of a hospital.

Each slice is a measurement `y = x + n` of itself, with the noise estimated from the series (domains/ct/noise_estimate.py), and the
same posterior methods draw x from it that reconstruct scans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from skimage.restoration import denoise_nl_means
from torch import Tensor

from domains.ct.noise_estimate import Array, NoiseModel
from domains.ct.pipeline import LEARNED, build_method
from suite.config import MainConfig
from suite.errors import InputError
from suite.noise import Noise
from suite.prior import Prior

METHODS = ("nlm", "dds", "pigdm", "mmps", "daps")
STEPS = {"daps": 16}
"""Network evaluations per sample where 8 are not enough."""

_START = 4.0  # noise level to start from, of that of the images: what is added must drown what is there
_SETTINGS: dict[str, dict[str, Any]] = {
    "dds": {"renoise": False, "momentum": 0.5, "strength": 2.0, "iterations": 10},
    "pigdm": {"iterations": 10},
    "mmps": {"iterations": 3},
    "daps": {"iterations": 10},
}
_FINEST = 0.6  # last noise level of dds, of that of the images
_SLICES_OF_NLM = {"patch_size": 5, "patch_distance": 9, "h": 0.6, "sigma": 1.0, "fast_mode": True}


class DenoiseConfig(MainConfig):
    """Settings of `ct denoise`.

    Attributes:
        method: default `pigdm`.
        samples: posterior samples whose mean is the result; a point method takes one.
        keep: share of the removed noise that is given back, for an eye used to it.
        options: arguments of the method.
        precision: of the network, as for `ct reconstruct`.
        batch: slices that go through the network together.
    """

    method: Literal["nlm", "dds", "pigdm", "mmps", "daps"] | None = None
    samples: int = Field(default=4, ge=1)
    keep: float = Field(default=0.0, ge=0, lt=1)
    options: dict[str, Any] = Field(default_factory=dict)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    batch: int = Field(default=4, ge=1)


@dataclass(frozen=True)
class Denoised:
    """Slices `(S, 1, ny, nx)` in HU; `std` where there are several samples; `chi2` of each slice; evaluations per sample."""

    image: Tensor
    std: Tensor | None
    chi2: Tensor
    evaluations: int


def choose(config: DenoiseConfig) -> tuple[str, int]:
    """Method and number of samples.

    Raises:
        InputError: several samples are asked of a point method.
    """
    name = config.method or "pigdm"
    if name == "nlm" or LEARNED[name].estimator == "point":
        if "samples" in config.model_fields_set and config.samples > 1:
            raise InputError(
                f"{name} is a point estimator whose spread is no uncertainty; with --samples {config.samples} use pigdm"
            )
        return name, 1
    return name, config.samples


def non_local_means(images: Array, noise: NoiseModel) -> Array:
    """The classical reference: non-local means (Buades, Coll and Morel 2005) of the slices over their noise's strength."""
    std = noise.std[:, 0].numpy()
    smooth = [denoise_nl_means(image / s, **_SLICES_OF_NLM) * s for image, s in zip(images, std, strict=True)]
    return np.stack(smooth).astype(np.float32)


def denoise(
    method: str,
    samples: int,
    images: Tensor,
    noise: NoiseModel,
    usual: float,
    prior: Prior,
    config: DenoiseConfig,
    identities: Sequence[str],
    clock: Callable[[str], AbstractContextManager[Any]],
) -> Denoised:
    """Slices without their noise.

    Args:
        images: `(S, 1, ny, nx)` in HU.
        noise: of these slices.
        usual: strength of the noise in HU from which the levels follow, the same for all slices of a series.
        identities: one for each slice; with the seed they decide its random numbers.
    """
    y = prior.to_network(images)
    measurement = noise.measurement(y, prior.card.scale)
    denoiser = prior.denoiser(precision=config.precision, clock=lambda: clock("network"))
    settings = dict(_SETTINGS[method])
    if method != "daps":
        settings["warm_start"] = _START * usual / prior.card.scale
    if method == "dds":
        settings["finest"] = _FINEST * usual / prior.card.scale
    solver = build_method(method, dict(config.options), prior, prior.to_network, images, settings)
    total, square = torch.zeros_like(y), torch.zeros_like(y)
    for sample in range(samples):
        denoiser.evaluations = 0
        drawn = Noise.of(config.seed, [f"{identity} sample {sample}" for identity in identities])
        u = solver.run(
            denoiser, measurement, torch.empty_like(y), noise=drawn, steps=config.steps or STEPS.get(method, 8)
        )
        change = u - total
        total = total + change / (sample + 1)
        square = square + change * (u - total)
    total = total + config.keep * (y - total)
    std = (square / (samples - 1)).sqrt() * prior.card.scale if samples > 1 else None
    return Denoised(prior.from_network(total), std, measurement.misfit_chi2(total), denoiser.evaluations)
