"""Multi-coil k-space simulated from a magnitude volume, for studies with a known truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from domains.mri.containers import Volume
from domains.mri.fastmri import Simulated
from domains.mri.masks import MaskKind, default_acs, sampling_mask
from domains.mri.phase import smooth_phase
from suite.config import Config
from suite.errors import InputError
from suite.noise import Noise, generator
from suite.operators import FFT


class SimulationConfig(Config):
    """Settings of `mri simulate`; acs None: what `default_acs` says for the mask."""

    acceleration: float = Field(ge=1)
    mask: MaskKind = "random1d"
    coils: int = Field(default=8, ge=1, le=128)
    acs: float | None = Field(default=None, ge=0, le=1)
    snr: float = 30.0
    slices: list[int | None] | None = None
    seed: int = Field(default=0, ge=0)


def coil_maps(coils: int, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Smooth sensitivities `(coils, ny, nx)` of loops around the field of view, `sum |s|^2 = 1`.

    Each falls off with the distance from its loop and turns its phase with the direction to it; the ring is turned at
    random, and the loops' distances vary a little.
    """
    if coils == 1:
        return torch.ones((1, *shape), dtype=torch.complex64)
    rng = generator(seed, "coil maps")
    ny, nx = shape
    y, x = torch.linspace(-1, 1, ny)[:, None], torch.linspace(-1, 1, nx)[None, :]
    turn = 2 * math.pi * float(torch.rand((), generator=rng))
    maps = []
    for c in range(coils):
        angle = turn + 2 * math.pi * c / coils
        away = 1.3 + 0.2 * float(torch.rand((), generator=rng))
        dy, dx = y - away * math.sin(angle), x - away * math.cos(angle)
        offset = 2 * math.pi * float(torch.rand((), generator=rng))
        maps.append(torch.polar(1 / (dy**2 + dx**2 + 0.15), torch.atan2(dy, dx) + offset))
    stack = torch.stack(maps)
    return stack / stack.abs().square().sum(0).sqrt()


def kspace_of(volume: Volume, config: SimulationConfig) -> Simulated:
    """Simulate a scan of every slice: phase, coils, FFT, noise, mask.

    The truth (`target`) is the magnitude without noise, since `sum |s|^2 = 1`; one noise level serves the whole volume.

    Raises:
        InputError: more than one volume in the file, no signal, or a mask that cannot be made.
    """
    if volume.data.ndim != 3:
        raise InputError(f"{volume.name}: holds volumes of shape {volume.data.shape}; one 3D volume is needed")
    truth = torch.from_numpy(np.maximum(volume.data, 0))
    if not float(truth.amax()) > 0:
        raise InputError(f"{volume.name}: holds no positive value in these slices, so there is nothing to simulate")
    if not math.isfinite(config.snr):
        raise InputError(f"--snr {config.snr}: a finite number of dB is needed")
    slices, ny, nx = truth.shape
    acs = default_acs(config.mask, config.acceleration) if config.acs is None else config.acs
    rng = np.random.default_rng(int(generator(config.seed, "mask").initial_seed()))
    mask = sampling_mask(config.mask, (ny, nx), config.acceleration, acs, rng)
    maps = coil_maps(config.coils, (ny, nx), config.seed)
    sigma = noise_level(truth, config.coils, config.snr)
    where = torch.from_numpy(mask)
    fft = FFT()
    data = np.empty((slices, config.coils, ny, nx), np.complex64)
    for k in range(slices):
        phase = smooth_phase(1, (ny, nx), generator(config.seed, f"phase {k}"), strength=1.5)[0, 0]
        full = fft(maps * torch.polar(truth[k], phase))
        full = full + sigma * Noise.of(config.seed, [f"noise {k}"]).normal(full[None])[0]
        data[k] = torch.where(where, full, 0).numpy()
    return Simulated(
        kspace=data,
        mask=mask,
        target=truth.numpy(),
        affine=volume.affine,
        acceleration=float(mask.size / mask.sum()),
        snr_db=config.snr,
        noise_sigma=sigma,
        mask_kind=config.mask,
        low_frequencies=round(acs * nx),
    )


def noise_level(truth: Tensor, coils: int, snr_db: float) -> float:
    """Standard deviation in each part: signal energy over noise energy, in the full multi-coil k-space, is the SNR.

    The FFT is unitary and the maps have unit norm, so the signal's energy is that of the image.
    """
    energy = float(truth.double().square().sum())
    return math.sqrt(energy / (2 * coils * truth.numel()) / 10 ** (snr_db / 10))


def facts(scan: Simulated, config: SimulationConfig) -> dict[str, Any]:
    """What the run's record tells beside the usual."""
    return {
        "acceleration": scan.acceleration,
        "acs": default_acs(config.mask, config.acceleration) if config.acs is None else config.acs,
        "noise_sigma": scan.noise_sigma,
        "snr_db": scan.snr_db,
        "shape": list(scan.kspace.shape),
    }
