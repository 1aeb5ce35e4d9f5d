"""The main job: a cine in; the cine with less haze, and the haze, out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.ultrasound.classical import CLASSICAL, REFERENCE
from domains.ultrasound.containers import Cine, Domain
from domains.ultrasound.estimate import Clock, remaining
from domains.ultrasound.grid import grid_of
from domains.ultrasound.physics import compress, decompress, envelope
from domains.ultrasound.sector import sector_of
from domains.ultrasound.separation import JOINT
from domains.ultrasound.settings import DehazeConfig
from suite.prior import Prior
from suite.trust import interval_factor

BRIGHT = 99.9
"""The percentile of the envelope of echoes (RF, IQ) that is shown white."""


@dataclass(frozen=True)
class Dehazed:
    """A dehazed cine `(frame, row, column)`.

    Attributes:
        output: in the units of the file.
        dehazed, haze, input: in the domain where they add, `dehazed + haze = input`.
        reference: the classical result, as `dehazed`.
        std: sample standard deviation of `dehazed`, or None.
        half_width: half of the 90 % interval about `dehazed`, or None.
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
    half_width: NDArray[np.float32] | None
    domain: Domain
    sector: NDArray[np.bool_]
    evaluations: int


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
    priors: dict[str, Prior],
    config: DehazeConfig,
    *,
    identity: str,
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
        kept, evaluations = remaining(inside, sector, grid, method, priors, config, name, cine.dynamic_range_db, clock)
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
        None if std is None else half_width(cine, mean, std, config.samples, priors),
        added,
        where.any(0) & sector,
        evaluations,
    )


def half_width(
    cine: Cine, mean: NDArray[Any], std: NDArray[np.float32], samples: int, priors: dict[str, Prior]
) -> NDArray[np.float32]:
    """Half of the 90 % interval: `t sqrt((scale std)^2 + floor^2)`, t of Student for so many samples.

    Scale and floor (grey levels of 255 that no sample shows, such as coding noise) are the prior's calibration, else 1 and 0.
    """
    told = priors["restore"].card.calibration.get("intervals", {})
    scale, floor = float(told.get("scale", 1.0)), float(told.get("floor", 0.0)) / 255
    if cine.domain == "grey":
        least: Any = floor * abs(cine.white - cine.black)
    else:  # a grey level is a share of the envelope
        least = floor * cine.dynamic_range_db / 20 * math.log(10) * np.abs(mean)
    return np.asarray(interval_factor(samples) * np.hypot(scale * std, least), np.float32)


def changeable(cine: Cine, sector: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels that may change: in the sector, and not text or colour; broadcasts to the data."""
    return sector[None] if cine.fixed is None else sector[None] & ~cine.fixed


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
