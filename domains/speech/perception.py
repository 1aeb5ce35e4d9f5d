"""What hearing makes of an error, as a training penalty beside the squared error of the compressed spectrogram.

correlation   1 - the correlation of normalised third-octave envelopes over 384 ms (Jensen and Taal 2016: what ESTOI measures)
loudness      mean |L' - L| / mean L of the bands' loudness L = energy^0.25 on the Bark scale (Zwicker's law; as in PESQ)
magnitude     squared error of the compressed magnitudes, which a wrong phase does not shrink (Braun and Tashev 2020)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from domains.speech.spectrum import Spectrum
from suite.config import Config

SEGMENT_SECONDS = 0.384
QUIET = 1e-3
"""Band energy, at unit level, below which nothing is heard: some 50 dB under speech."""


class PerceptionConfig(Config):
    """Weights of the terms; all 0: none."""

    correlation: float = Field(default=0.0, ge=0)
    loudness: float = Field(default=0.0, ge=0)
    magnitude: float = Field(default=0.0, ge=0)

    @property
    def wanted(self) -> bool:
        return self.correlation + self.loudness + self.magnitude > 0


def third_octaves(frequencies: NDArray[np.float64]) -> Tensor:
    """`(15, bins)`, 1 where a bin lies in a band: centres 150 * 2^(k/3) Hz, edges at the nearest bins."""
    centres = 150 * 2 ** (np.arange(15) / 3)
    low, high = (np.abs(frequencies - centres[:, None] * 2**s).argmin(1) for s in (-1 / 6, 1 / 6))
    bins = np.arange(len(frequencies))
    return torch.from_numpy(((bins >= low[:, None]) & (bins < np.maximum(high, low + 1)[:, None])).astype(np.float32))


def barks(frequencies: NDArray[np.float64]) -> Tensor:
    """`(bands, bins)`, 1 where a bin lies in a band one Bark wide (Traunmueller 1990)."""
    rate = 26.81 * frequencies / (1960 + frequencies) - 0.53
    band = np.clip(np.floor(rate), 0, None).astype(int)
    rows = (band == np.arange(band.max() + 1)[:, None]).astype(np.float32)
    return torch.from_numpy(rows[rows.any(1)])


class Perception:
    """The penalty `(B,)` of estimates of states."""

    def __init__(self, spectrum: Spectrum, config: PerceptionConfig) -> None:
        self.spectrum, self.config = spectrum, config
        frequencies = np.arange(spectrum.window // 2 + 1) * spectrum.rate / spectrum.window
        self.octaves, self.barks = third_octaves(frequencies), barks(frequencies)
        self.segment = round(SEGMENT_SECONDS * spectrum.rate / spectrum.hop)

    def __call__(self, estimate: Tensor, truth: Tensor) -> Tensor:
        """`(B,)` for states `(B, channels, rows, columns)`."""
        config = self.config
        found, wanted = (self._magnitudes(state) for state in (estimate, truth))
        out = config.magnitude * (found - wanted).square().flatten(1).mean(1)
        a, b = (self._energies(size) for size in (found, wanted))
        out = out + config.loudness * loudness_error(self.barks.to(a) @ a, self.barks.to(b) @ b)
        segment = min(self.segment, a.shape[-1])
        return out + config.correlation * (
            1 - envelope_correlation(self.octaves.to(a) @ a, self.octaves.to(b) @ b, segment)
        )

    def _magnitudes(self, state: Tensor) -> Tensor:
        spectrum = self.spectrum.unfold(state)
        return (spectrum.real.square() + spectrum.imag.square() + 1e-8).sqrt()

    def _energies(self, magnitudes: Tensor) -> Tensor:
        return (magnitudes / self.spectrum.factor) ** (2 / self.spectrum.exponent)


def loudness_error(found: Tensor, wanted: Tensor) -> Tensor:
    """`(B,)` for band energies `(B, bands, frames)`."""
    loud, true = ((energy + QUIET) ** 0.25 for energy in (found, wanted))
    return (loud - true).abs().flatten(1).mean(1) / true.flatten(1).mean(1)


def envelope_correlation(found: Tensor, wanted: Tensor, segment: int) -> Tensor:
    """ESTOI's mean correlation `(B,)` of band energies `(B, bands, frames)` over segments, weighted by their share of speech.

    A frame holds speech when it is less than 40 dB below the loudest.
    """
    energy = wanted.sum(1)
    heard = (energy > 1e-4 * energy.amax(-1, keepdim=True)).float()
    weight = heard.unfold(-1, segment, max(1, segment // 4)).mean(-1)
    a, b = (_normalised((part + QUIET**2).sqrt(), segment) for part in (found, wanted))
    alike = (a * b).sum((1, 3)) / segment
    return (weight * alike).sum(-1) / weight.sum(-1).clamp_min(1e-6)


def _normalised(envelopes: Tensor, segment: int) -> Tensor:
    """`(B, bands, segments, frames)`: zero mean and unit norm over time, then over the bands."""
    x = envelopes.unfold(-1, segment, max(1, segment // 4))
    for axis in (3, 1):
        x = x - x.mean(axis, keepdim=True)
        x = x / (x.square().sum(axis, keepdim=True) + QUIET**2).sqrt()
    return x
