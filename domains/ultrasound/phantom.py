"""A beating ventricle in a sector of speckle, for the demonstration and the tests."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from suite.noise import generator


def heart(frames: int = 20, side: int = 128, seed: int = 0) -> NDArray[np.uint8]:
    """Grey levels `(frames, side, side)`, dynamic range 60 dB: speckle (Rayleigh) of tissue, dark blood, a bright wall."""
    rng = np.random.default_rng(generator(seed, "heart").initial_seed() % 2**32)
    y, x = np.mgrid[:side, :side] / side
    down, across = y - 0.05, x - 0.5
    sector = (np.abs(across) < 0.02 + 0.85 * down) & (np.hypot(down, across) < 0.9) & (down > 0)
    out = []
    field = rng.normal(size=(2, side, side)) + 1j * rng.normal(size=(2, side, side))
    for k in range(frames):
        beat = math.sin(2 * math.pi * k / 20)
        radius = np.hypot((y - 0.45) / (0.27 + 0.02 * beat), (x - 0.5) / (0.14 + 0.025 * beat))
        level = np.where(radius < 1, -50.0, np.where(radius < 1.3, -14.0, -30.0 - 12 * y))
        phase = math.cos(0.4 * k), math.sin(0.4 * k)  # speckle changes slowly over time
        echo = ndimage.gaussian_filter(phase[0] * field[0].real + phase[1] * field[1].real, (0.6, 1.2)) + 1j * (
            ndimage.gaussian_filter(phase[0] * field[0].imag + phase[1] * field[1].imag, (0.6, 1.2))
        )
        speckle = np.abs(echo) / np.sqrt(np.mean(np.abs(echo) ** 2))
        db = level + 20 * np.log10(np.maximum(speckle, 1e-3))
        out.append(np.where(sector, np.clip(255 * (1 + db / 60), 0, 255), 0))
    return np.rint(out).astype(np.uint8)
