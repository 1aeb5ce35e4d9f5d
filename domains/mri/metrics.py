"""MRI image quality by the three conventions of the literature, whose figures cannot be compared with each other.

- `fastmri` (Zbontar et al. 2018, fastMRI/evaluate.py): over the volume; the peak is the largest value of the reference volume.
- `dds` (Chung, Lee and Ye 2024; also score-MRI): each slice, of result and reference, is first mapped to 0..1 by its own
  minimum and maximum, which hides errors of scale.
- `slice` (InverseBench, Zheng et al. 2025): each slice by itself, the peak being the range of the reference slice.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from suite.errors import InputError

Convention = Literal["fastmri", "dds", "slice"]
Array = NDArray[np.float32]


def nmse(x: NDArray[Any], reference: NDArray[Any]) -> float:
    """`|x - ref|^2 / |ref|^2`."""
    return float(np.linalg.norm(reference - x) ** 2 / np.linalg.norm(reference) ** 2)


def _fastmri(x: NDArray[Any], reference: NDArray[Any]) -> list[dict[str, float]]:
    """Each slice with the volume's peak; PSNR and NMSE of the volume are made elsewhere from the whole."""
    peak = float(reference.max())
    return [_row(a, b, peak) for a, b in zip(x, reference, strict=True)]


def _row(x: NDArray[Any], reference: NDArray[Any], peak: float) -> dict[str, float]:
    return {
        "nmse": nmse(x, reference) if reference.any() else float("nan"),
        "psnr": float(peak_signal_noise_ratio(reference, x, data_range=peak)),
        "ssim": float(structural_similarity(reference, x, data_range=peak)),
    }


def _unit(image: NDArray[Any]) -> NDArray[Any]:
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def evaluate(result: Array, reference: Array, convention: str = "fastmri") -> dict[str, Any]:
    """NMSE, PSNR (dB) and SSIM of magnitudes `(slice, y, x)`, and each slice's own.

    SSIM is skimage's with its defaults (7 x 7 uniform window). Slices whose reference is constant are left out of the
    per-slice conventions.

    Raises:
        InputError: shapes differ, slices too small for SSIM, or a reference without signal.
    """
    if result.shape != reference.shape:
        raise InputError(f"the result has shape {result.shape} and the reference {reference.shape}; they must agree")
    if min(reference.shape[-2:]) < 7:
        raise InputError(f"slices of {reference.shape[-2:]} pixels are too small for SSIM, which needs 7 x 7")
    x = np.abs(result.astype(np.float64)).reshape(-1, *result.shape[-2:])
    ref = np.abs(reference.astype(np.float64)).reshape(-1, *reference.shape[-2:])
    if not ref.any():
        raise InputError("the reference holds no signal, so there is nothing to evaluate")
    if convention == "fastmri":
        rows = _fastmri(x, ref)
        metrics = {
            "nmse": nmse(x, ref),
            "psnr": float(peak_signal_noise_ratio(ref, x, data_range=ref.max())),
            "ssim": float(np.mean([row["ssim"] for row in rows])),
        }
        return {"metrics": metrics, "slices": [{"slice": k, **row} for k, row in enumerate(rows)]}
    rows = []
    for k, (a, b) in enumerate(zip(x, ref, strict=True)):
        if b.max() > b.min():
            a, b = (_unit(a), _unit(b)) if convention == "dds" else (a, b)
            rows.append({"slice": float(k), **_row(a, b, float(b.max() - b.min()))})
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("nmse", "psnr", "ssim")}
    return {"metrics": means, "slices": rows}
