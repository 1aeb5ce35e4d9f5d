"""The noise of an image series from the images alone: how strong it is at each pixel, and its texture.

    n = std(r) * (h convolved with white noise)

`std` varies over the image, because a body attenuates unevenly; the texture h is the same everywhere and has unit gain. That
is the local model of CT noise behind the noise power spectrum (Riederer, Pelc and Chesler 1978; ICRU report 87).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from suite.errors import InputError
from suite.linalg import TensorMap
from suite.measurement import Measurement
from suite.operators import Compose, Diagonal, FourierDiagonal, Identity

Array = NDArray[np.float32]

_PATCH = 32  # pixels a side of a patch whose spectrum is taken
_LOWEST = 6  # ring of frequencies below which tissue hides the noise
_SPREAD = 2.25  # frequencies of a Hann-windowed patch that count as one, (1.5)^2
_WINDOW = 33  # pixels over which the strength is taken
_QUANTILE = 0.3  # of the filtered magnitudes: edges, which are few, do not reach it
_MARGIN = 6  # pixels of the body's rim, where the skin's edge outweighs the noise
_LEAST = 0.05  # HU; less is no noise but rounding
_SMOOTH = 1.5  # pixels; what a Gaussian of this width takes out is looked at for strength
_FLOOR = 0.03  # least amplitude of the texture, of its mean: below, data would count as free of noise


@dataclass(frozen=True)
class NoiseModel:
    """Noise of slices `(S, 1, ny, nx)`.

    Attributes:
        std: standard deviation in HU, `(S, 1, ny, nx)`.
        amplitude: root of the noise power spectrum, `(ny, nx)` in the order of `fftfreq`, mean square 1.
    """

    std: Tensor
    amplitude: Tensor

    def measurement(self, images: Tensor, scale: float) -> Measurement:
        """The images (in network units of `scale` HU) as measurements of themselves without noise."""
        std = self.std / scale
        whitening = Compose(FourierDiagonal(1 / self.amplitude), Diagonal(1 / std))
        usual = std.flatten(1).median(1).values.reshape(-1, 1, 1, 1)

        def preconditioner(shift: Tensor) -> TensorMap:
            """Inverse of `1/(std a)^2 + p` for the usual noise, scaled where the noise differs from it."""
            gain = 1 / ((usual * self.amplitude) ** -2 + shift)
            pixels = ((std**-2 + shift) / (usual**-2 + shift)).sqrt()
            inner = FourierDiagonal(gain)
            return lambda r: inner(r / pixels) / pixels

        return Measurement(Identity(), images, whitening, preconditioner=preconditioner)

    def to(self, device: torch.device) -> NoiseModel:
        """The same on another device."""
        return NoiseModel(self.std.to(device), self.amplitude.to(device))

    def select(self, rows: slice) -> NoiseModel:
        """Some of the slices."""
        return NoiseModel(self.std[rows], self.amplitude)


def estimate_noise(images: Array, inside: NDArray[np.bool_]) -> NoiseModel:
    """The noise of slices in HU.

    Both come from low quantiles, which edges do not move: the texture from the spectra of patches, the strength from what a
    high-pass filter leaves around each pixel.

    Args:
        images: `(S, ny, nx)` in HU.
        inside: the body, bool `(S, ny, nx)`.

    Raises:
        InputError: slices too small, no body, or no noise at all.
    """
    if min(images.shape[1:]) < 2 * _PATCH:
        raise InputError(
            f"slices of {images.shape[1]} x {images.shape[2]} pixels are too small to tell noise from tissue"
        )
    if not inside.any():
        raise InputError("no body (above -400 HU) is seen, and the noise is estimated inside it")
    profile = _texture(images, inside)
    amplitude = _on_grid(profile, images.shape[1:])
    frequency = [np.fft.fftfreq(n) for n in images.shape[1:]]
    kept = 1 - np.exp(-2 * (np.pi * _SMOOTH) ** 2 * (frequency[0][:, None] ** 2 + frequency[1] ** 2))
    gain = math.sqrt(float(np.mean((amplitude * kept) ** 2)))
    std = np.stack([_strength(image, mask) for image, mask in zip(images, inside, strict=True)]) / gain
    if not float(np.median(std[inside])) > _LEAST:
        raise InputError("the images hold no noise at all, so there is nothing to take out")
    return NoiseModel(torch.from_numpy(std.astype(np.float32))[:, None], torch.from_numpy(amplitude.astype(np.float32)))


def noise_left(std: float, before: Array, after: Array, inside: NDArray[np.bool_]) -> float:
    """The noise of a result in HU, by the same filter and quantile that gave the input `std`."""
    low, high = (
        np.quantile(np.concatenate([_fine(i)[m] for i, m in zip(images, inside, strict=True)]), _QUANTILE)
        for images in (after, before)
    )
    return std * float(low / high) if high > 0 else 0.0


def _fine(image: Array) -> NDArray[np.float64]:
    """Magnitude of what a high-pass filter leaves of a slice."""
    return np.abs(image.astype(np.float64) - ndimage.gaussian_filter(image.astype(np.float64), _SMOOTH))


def _texture(images: Array, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Power of the noise by distance from zero frequency, in steps of 1 / _PATCH cycles per pixel.

    Tissue only adds power, so of all patches a low quantile counts, set right for the chi-square law of pure noise. Patches
    are compared after division by their power at high frequencies, where there is little but noise. Below the sixth ring,
    where tissue hides it in every patch, the noise falls as filtered back-projection makes it: power as frequency.
    """
    f = np.fft.fftfreq(_PATCH) * _PATCH
    ring = np.rint(np.hypot(f[:, None], f)).astype(int).ravel()
    counts = np.bincount(ring)
    window = np.outer(np.hanning(_PATCH), np.hanning(_PATCH))
    patches = _patches(images, inside)
    power = np.abs(np.fft.fft2(window * (patches - _trend(patches)))) ** 2
    rings = np.stack([np.bincount(ring, p) / counts for p in power.reshape(len(power), -1)])
    high = rings[:, _PATCH // 4 : _PATCH // 2].mean(1)
    if not bool((high > 0).any()):
        raise InputError("the images hold no noise at all, so there is nothing to take out")
    freedom = counts / _SPREAD  # neighbouring frequencies of a windowed patch agree
    profile = np.quantile(rings[high > 0] / high[high > 0, None], _QUANTILE, axis=0)
    profile *= freedom / stats.chi2.ppf(_QUANTILE, freedom)
    profile[:_LOWEST] = profile[_LOWEST] * np.arange(_LOWEST) / _LOWEST
    return profile


def _patches(images: Array, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """All half-overlapping patches inside the body, `(n, _PATCH, _PATCH)`."""
    size, step = (1, _PATCH, _PATCH), np.s_[:, :: _PATCH // 2, :: _PATCH // 2]
    whole = np.lib.stride_tricks.sliding_window_view(inside, size)[step].all((-3, -2, -1))
    found = np.lib.stride_tricks.sliding_window_view(images, size)[step][whole]
    if not len(found):
        raise InputError(
            f"the body has no {_PATCH} x {_PATCH} pixels of its own, too few to see the texture of the noise"
        )
    return found[:, 0].astype(np.float64)


def _trend(patches: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best quadratic of each patch."""
    t = np.linspace(-1, 1, _PATCH)
    y, x = np.meshgrid(t, t, indexing="ij")
    basis = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6))[0]
    flat = patches.reshape(len(patches), -1)
    return (flat @ basis @ basis.T).reshape(patches.shape)


def _on_grid(profile: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The root of a radial power profile on the grid of the image, mean square 1, with a floor."""
    frequency = [np.fft.fftfreq(n) * _PATCH for n in shape]
    amplitude = np.sqrt(np.interp(np.hypot(frequency[0][:, None], frequency[1]), np.arange(profile.size), profile))
    amplitude = np.maximum(amplitude, _FLOOR * amplitude.mean())
    return amplitude / math.sqrt(float(np.mean(amplitude**2)))


def _strength(image: Array, body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Standard deviation of the high-passed noise around each pixel; elsewhere that of the nearest pixels well inside the body."""
    inner = ndimage.binary_erosion(body, iterations=_MARGIN)
    if not inner.any():
        inner = body if body.any() else np.ones_like(body)
    high = _fine(image)
    nearest = ndimage.distance_transform_edt(~inner, return_distances=False, return_indices=True)
    magnitude = ndimage.percentile_filter(high[tuple(nearest)][::2, ::2], 100 * _QUANTILE, size=_WINDOW // 2)
    normal = stats.norm.ppf((1 + _QUANTILE) / 2)  # this quantile of |N(0, 1)|
    smooth = ndimage.gaussian_filter(magnitude / normal, _WINDOW / 4)
    zoom = [n / m for n, m in zip(image.shape, smooth.shape, strict=True)]
    return np.asarray(ndimage.zoom(smooth, zoom, order=1, grid_mode=True, mode="nearest"))
