"""The main job: a cine in; the cine with less haze, and the haze, out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from domains.ultrasound.classical import CLASSICAL, REFERENCE
from domains.ultrasound.containers import Cine, Domain
from domains.ultrasound.grid import BLOCK, Grid, as_tensor, grid_of
from domains.ultrasound.physics import compress, decompress, envelope
from domains.ultrasound.sector import sector_of
from domains.ultrasound.separation import JOINT, joint, restore
from domains.ultrasound.training import UNITS, Kind
from suite.config import Config, MainConfig
from suite.errors import InputError
from suite.prior import Prior, load_prior

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = {kind: WEIGHTS / f"echo-{kind}.safetensors" for kind in UNITS}
STEPS, SAMPLING_STEPS = 1, 20
"""Network evaluations of `restore`: of one estimate, and of each of several samples."""

BRIGHT = 99.9
"""The percentile of the envelope of echoes (RF, IQ) that is shown white."""


class InputSettings(Config):
    """What the file does not tell.

    Attributes:
        domain: of the samples; None: as the file says or its values suggest.
        dynamic_range_db: of the log compression; None: the file's own, or 60.
    """

    domain: Literal["grey", "envelope", "rf", "iq"] | None = None
    dynamic_range_db: float | None = Field(default=None, gt=0, le=200)


class DehazeConfig(MainConfig):
    """Settings of `ultrasound dehaze`.

    Attributes:
        method: `restore` (default), `pigdm`, `dps`, `projection` (joint posterior with two priors), or without a network
            `background`, `svd`, `rpca`.
        strength: of `restore` and the classical methods, multiplies the haze before it is taken off; of the joint methods, gamma,
            the weight of the haze in the sum.
        window: frames around each over which `restore` looks for what does not move.
        threshold: of `restore`, grey levels of 255 that its estimates are lowered by: so little is no haze.
        haze_prior: of the joint methods, the second prior's file; `prior` is the tissue's.
        begin: of the joint methods, the estimate to start from: the shipped `restore` network's (predict, then regenerate), or the
            classical `background`.
        noise_std: of the joint methods, of what neither signal explains, on the companded scale 0..1.
        batch: frames that go through the network together.
        input: what the file does not tell.
        options: arguments of a joint method, e.g. `options.strength=1.0`.
    """

    method: Literal["restore", "pigdm", "dps", "projection", "background", "svd", "rpca"] | None = None
    strength: float = Field(default=1.0, ge=0, le=10)
    window: int = Field(default=21, ge=1)
    threshold: float = Field(default=2.0, ge=0, le=255)
    haze_prior: Path | None = None
    begin: Literal["restore", "background"] = "restore"
    noise_std: float = Field(default=0.05, gt=0)
    batch: int = Field(default=25, ge=1)
    input: InputSettings = InputSettings()
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Dehazed:
    """A dehazed cine `(frame, row, column)`.

    Attributes:
        output: in the units of the file.
        dehazed, haze, input: in the domain where they add, `dehazed + haze = input`.
        reference: the classical result, as `dehazed`.
        std: sample standard deviation of `dehazed`, or None.
        domain: `grey` (values of the file), `envelope` (0..1 of white), `rf` or `iq` (values of the file).
        sector: mask `(row, column)` of the pixels that could change.
        evaluations: of the network (of each, for two), per sample.
    """

    output: NDArray[Any]
    dehazed: NDArray[Any]
    haze: NDArray[Any]
    input: NDArray[Any]
    reference: NDArray[Any]
    std: NDArray[np.float32] | None
    domain: Domain
    sector: NDArray[np.bool_]
    evaluations: int


Clock = Callable[[str], AbstractContextManager[Any]]
Remaining = tuple[NDArray[np.float32], int]


def choose_method(config: DehazeConfig) -> str:
    """The method of a run.

    Raises:
        InputError: several samples of a method whose spread is no uncertainty.
    """
    name = config.method or "restore"
    if config.samples > 1 and name != "restore":
        raise InputError(
            f"{name} is a point estimator here, whose spread is no uncertainty; with --samples {config.samples} use restore"
        )
    return name


def load_priors(method: str, config: DehazeConfig, device: torch.device) -> dict[Kind, Prior]:
    """The networks of a method: the named ones, or the shipped ones, checked for what they are."""
    if method in CLASSICAL:
        return {}
    files: dict[Kind, Path | None] = {"tissue": config.prior, "haze": config.haze_prior}
    if method == "restore":
        files = {"restore": config.prior}
    elif config.begin == "restore":
        files["restore"] = None
    return {
        kind: load_prior(file or SHIPPED[kind], device, unit=UNITS[kind], channels=BLOCK**2)
        for kind, file in files.items()
    }


def grey_of(cine: Cine) -> tuple[NDArray[np.float32], float]:
    """Grey values 0..1 of any cine, and for echoes the envelope that is shown white."""
    if cine.domain == "grey":
        return cine.grey(), 1.0
    seen = np.abs(cine.data) if cine.domain == "envelope" else envelope(cine.data, cine.domain)
    white = float(np.percentile(seen, BRIGHT)) or float(seen.max())
    return np.clip(compress(seen / white, cine.dynamic_range_db), 0, 1).astype(np.float32), white


def dehaze(
    cine: Cine,
    method: str,
    priors: dict[Kind, Prior],
    config: DehazeConfig,
    *,
    identity: str,
    device: torch.device,
    clock: Clock,
    progress: Callable[[int], None] = lambda _: None,
) -> Dehazed:
    """Every frame of a cine; `identity` and the seed decide the random numbers."""
    sector = sector_of(cine)
    grey, _ = grey_of(cine)
    grid, where = grid_of(cine, sector), changeable(cine, sector)
    inside = np.where(where, grey, np.float32(0))
    with clock("operator"):
        reference = CLASSICAL[REFERENCE](inside, sector)
    draws, evaluations = [], 0
    for sample in range(config.samples):
        name = f"{identity} sample {sample}"
        kept, evaluations = remaining(
            inside, sector, grid, method, priors, config, name, cine.dynamic_range_db, device, clock
        )
        draws.append(combined(cine, np.where(where, kept, grey), grey, method))
        progress(sample + 1)
    added, given = added_domain(cine, method), combined(cine, grey, grey, method)
    mean = np.mean(draws, axis=0) if len(draws) > 1 else draws[0]
    std = np.std(np.abs(np.stack(draws)), axis=0, ddof=1).astype(np.float32) if len(draws) > 1 else None
    beside = combined(cine, np.where(where, np.minimum(reference, grey), grey), grey, method)
    return Dehazed(
        in_file_units(cine, mean, method),
        mean,
        given - mean,
        given,
        beside,
        std,
        added,
        where.any(0) & sector,
        evaluations,
    )


def changeable(cine: Cine, sector: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels that may change: in the sector, and not text or colour; broadcasts to the data."""
    return sector[None] if cine.fixed is None else sector[None] & ~cine.fixed


def remaining(
    grey: NDArray[np.float32],
    sector: NDArray[np.bool_],
    grid: Grid,
    method: str,
    priors: dict[Kind, Prior],
    config: DehazeConfig,
    identity: str,
    dynamic_range_db: float,
    device: torch.device,
    clock: Clock,
) -> Remaining:
    """Grey values 0..1 without the haze, never brighter than before, and the network evaluations."""
    if method in CLASSICAL:
        with clock("operator"):
            haze = grey - CLASSICAL[method](grey, sector)
        return np.clip(grey - config.strength * np.clip(haze, 0, None), 0, 1), 0
    coarse = grid.reduce(as_tensor(grey, device))
    common: dict[str, Any] = {"seed": config.seed, "identity": identity, "chunk": config.batch, "clock": clock}
    guess, first = grid.reduce(as_tensor(CLASSICAL[REFERENCE](grey, sector), device)), 0
    if method == "restore" or (config.begin == "restore" and config.steps != 1):
        steps = (config.steps if method == "restore" else None) or (STEPS if config.samples == 1 else SAMPLING_STEPS)
        found, first = restore(coarse, priors["restore"], window=config.window, steps=steps, **common)
        found = (found - config.threshold / 255).clamp_min(0)
        if method == "restore":
            return np.clip(grey - config.strength * grid.restore(found).cpu().numpy(), 0, None), first
        guess = (coarse - found).clamp_min(0)
    share, evaluations = joint(
        coarse,
        guess,
        priors["tissue"],
        priors["haze"],
        method=method,
        gamma=config.strength,
        noise_std=config.noise_std,
        dynamic_range_db=dynamic_range_db,
        steps=None if config.steps is None else config.steps - first,
        options=dict(config.options),
        **common,
    )
    kept = grid.restore(share).cpu().numpy()
    return compress(kept * decompress(grey, dynamic_range_db), dynamic_range_db).astype(np.float32), first + evaluations


# --- domains ------------------------------------------------------------------------------------------------------------


def added_domain(cine: Cine, method: str) -> Domain:
    """Where tissue and haze add: echoes in their own domain; pictures as grey, or for the joint methods as envelope."""
    return "envelope" if cine.domain == "grey" and method in JOINT else cine.domain


def combined(cine: Cine, grey: NDArray[np.float32], before: NDArray[np.float32], method: str) -> NDArray[Any]:
    """The signal, in the domain where tissue and haze add, whose grey values are `grey` in place of those `before`.

    Echoes keep their phase: they are multiplied by the ratio of the two envelopes.
    """
    if cine.domain == "grey" and method in JOINT:
        return decompress(grey.astype(np.float64), cine.dynamic_range_db).astype(np.float32)
    if cine.domain == "grey":
        values: NDArray[np.float32] = (cine.black + (cine.white - cine.black) * grey).astype(np.float32)
        return values
    rate = cine.dynamic_range_db
    gain = decompress(grey.astype(np.float64), rate) / np.maximum(decompress(before.astype(np.float64), rate), 1e-12)
    return (cine.data * np.clip(gain, 0, 1)).astype(cine.data.dtype)


def in_file_units(cine: Cine, signal: NDArray[Any], method: str) -> NDArray[Any]:
    """A signal of the adding domain in the units of the file."""
    if cine.domain == "grey" and method in JOINT:
        grey = compress(signal.astype(np.float64), cine.dynamic_range_db)
        return (cine.black + (cine.white - cine.black) * grey).astype(np.float32)
    return signal
