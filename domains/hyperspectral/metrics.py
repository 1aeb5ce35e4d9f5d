"""Image quality of cubes, in the conventions of hyperspectral denoising (QRNN3D, SST, SERT)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.simulation import band_range
from suite.errors import InputError

NORMALISATION = "each band by the minimum and maximum of the reference, to 0..1"


def evaluate(result: Cube, reference: Cube) -> dict[str, Any]:
    """MPSNR (dB), MSSIM, SAM (degrees) and ERGAS, with the settings they depend on.

    PSNR, SSIM (7 x 7 uniform window) and ERGAS are means over bands, the first two with data range 1 after scaling each band
    by the reference's own minimum and maximum; SAM is the mean angle between the spectra of pixels in physical units, those
    that are zero left out; ERGAS = `100 sqrt(mean_b(MSE_b / mean_b^2))`. Bands flagged bad, empty or constant in the reference,
    and pixels without data in either cube, do not count.

    Raises:
        InputError: shapes differ, or nothing is left to compare.
    """
    if result.shape != reference.shape:
        raise InputError(f"the result has shape {result.shape} and the reference {reference.shape}; they must agree")
    x = result.values() * np.float32(result.scale) + np.float32(result.offset)
    ref = reference.values() * np.float32(reference.scale) + np.float32(reference.offset)
    low, extent = band_range(ref)
    bands = np.isfinite(x).any((0, 1)) & (np.nanstd(np.where(np.isfinite(ref), ref, low), axis=(0, 1)) > 0)
    if reference.good is not None:
        bands &= reference.good
    x, ref, low, extent = x[..., bands], ref[..., bands], low[bands], extent[bands]
    inside = np.isfinite(x).all(2) & np.isfinite(ref).all(2)
    if not bands.any() or not inside.any():
        raise InputError(f"{result.name} and {reference.name} have no band or no pixel with values in both")
    error = ((x - ref) / extent)[inside].astype(np.float64)
    mse = np.maximum(np.square(error).mean(0), 1e-20)
    level = ref[inside].mean(0, dtype=np.float64)
    raw = mse * np.square(extent.astype(np.float64))
    metrics = {
        "psnr": float((-10 * np.log10(mse)).mean()),
        "ssim": _ssim(
            np.where(inside[..., None], (x - low) / extent, 0), np.where(inside[..., None], (ref - low) / extent, 0)
        ),
        "sam_deg": spectral_angle(x[inside], ref[inside]),
        "ergas": float(100 * np.sqrt(np.mean(raw / np.maximum(np.square(level), 1e-20)))),
    }
    settings = {
        "normalisation": NORMALISATION,
        "data_range": 1.0,
        "ssim": "scikit-image, 7 x 7 uniform window, mean over bands",
        "sam": "degrees, physical units",
        "ergas_ratio": 1,
        "bands": int(bands.sum()),
        "pixels": int(inside.sum()),
    }
    return {"metrics": metrics, "settings": settings}


def _ssim(x: NDArray[np.float32], reference: NDArray[np.float32]) -> float | None:
    """None for scenes too small for the window."""
    if min(x.shape[:2]) < 7:
        return None
    return float(
        np.mean([structural_similarity(reference[..., b], x[..., b], data_range=1.0) for b in range(x.shape[2])])
    )


def spectral_angle(x: NDArray[Any], reference: NDArray[Any]) -> float:
    """Mean angle in degrees between spectra `(pixels, bands)` (Kruse et al. 1993); spectra of length zero are left out."""
    x, reference = x.astype(np.float64), reference.astype(np.float64)
    length = np.linalg.norm(x, axis=1) * np.linalg.norm(reference, axis=1)
    kept = length > 0
    cosine = (x[kept] * reference[kept]).sum(1) / length[kept]
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())
