"""CT image quality in Hounsfield units, inside the body, slice by slice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from domains.ct.physics import body_mask
from suite.errors import InputError

WINDOWS: dict[str, tuple[float, float]] = {"soft": (400, 40), "lung": (1500, -600), "bone": (1800, 400)}
"""Display windows as (width, level) in HU."""

FULL_RANGE = (-1024.0, 3071.0)
ROUNDING = float(np.finfo(np.float32).eps)


def window_range(name: str) -> tuple[float, float]:
    """`(low, high)` of a window in HU."""
    width, level = WINDOWS[name]
    return level - width / 2, level + width / 2


def psnr(
    x: NDArray[np.float32], reference: NDArray[np.float32], mask: NDArray[np.bool_], low: float, high: float
) -> float:
    """Peak signal-to-noise ratio in dB of values clipped to `[low, high]`, over the pixels of the mask.

    Errors count as at least the rounding of single precision: images that agree have 138.5 dB and not infinity, which JSON
    does not know and which would swallow the other slices in a mean.
    """
    error = (x.clip(low, high) - reference.clip(low, high))[mask]
    mse = float(np.mean(np.square(error, dtype=np.float64))) / (high - low) ** 2
    return float(-10 * np.log10(max(mse, ROUNDING**2)))


def ssim(
    x: NDArray[np.float32], reference: NDArray[np.float32], mask: NDArray[np.bool_], low: float, high: float
) -> float:
    """Mean structural similarity (Wang et al. 2004; 7 x 7 window) of the clipped values over the pixels of the mask."""
    _, image = structural_similarity(x.clip(low, high), reference.clip(low, high), data_range=high - low, full=True)
    return float(image[mask].mean())


def evaluate(result: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, Any]:
    """Metrics of a reconstruction `(z, y, x)` in HU against its reference: the mean over slices, and each slice.

    `hu_rmse` and `hu_bias` are unclipped; `psnr`, `ssim` use -1024..3071 HU; `psnr_soft`, ... the named window. The
    mask is the body of the reference (> -400 HU, opened, largest piece, holes filled); slices without one are left out.

    Raises:
        InputError: shapes differ, or no slice shows a body.
    """
    if result.shape != reference.shape:
        raise InputError(f"the result has shape {result.shape} and the reference {reference.shape}; they must agree")
    ranges = {"": FULL_RANGE} | {f"_{name}": window_range(name) for name in WINDOWS}
    slices = []
    for k, (x, ref) in enumerate(zip(result, reference, strict=True)):
        mask = body_mask(ref)
        if not mask.any():
            continue
        error = (x - ref)[mask].astype(np.float64)
        row: dict[str, float] = {
            "slice": k,
            "hu_rmse": float(np.sqrt(np.mean(error**2))),
            "hu_bias": float(error.mean()),
        }
        for suffix, (low, high) in ranges.items():
            row[f"psnr{suffix}"] = psnr(x, ref, mask, low, high)
            row[f"ssim{suffix}"] = ssim(x, ref, mask, low, high)
        slices.append(row)
    if not slices:
        raise InputError("no slice of the reference shows a body (above -400 HU), so there is nothing to evaluate")
    means = {name: float(np.mean([row[name] for row in slices])) for name in slices[0] if name != "slice"}
    return {"metrics": means, "slices": slices}
