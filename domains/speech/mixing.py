"""Noisy and reverberant speech from clean speech, noises and room responses: for `simulate`, and on the fly for training."""

from __future__ import annotations

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from suite.errors import InputError

Array = NDArray[np.float32]


def reverberant(speech: Array, response: Array) -> Array:
    """The speech `(n,)` convolved with a room response whose first sample is time 0; same length."""
    out: Array = scipy.signal.fftconvolve(speech, response)[: len(speech)].astype(np.float32)
    return out


def fitted(noise: Array, count: int, first: int = 0) -> Array:
    """`count` samples of a noise from sample `first` on, repeated as often as needed."""
    index = (first + np.arange(count)) % len(noise)
    out: Array = noise[index]
    return out


def scaled_to(noise: Array, speech: Array, snr_db: float) -> Array:
    """The noise scaled so that `10 log10 (sum speech^2 / sum noise^2) = snr_db`.

    Raises:
        InputError: one of the two is silent.
    """
    powers = float(np.square(speech, dtype=np.float64).sum()), float(np.square(noise, dtype=np.float64).sum())
    if min(powers) <= 0:
        raise InputError(
            f"a signal-to-noise ratio needs sound, and the {'speech' if powers[0] <= 0 else 'noise'} is silent"
        )
    out: Array = noise * np.float32(np.sqrt(powers[0] / powers[1]) * 10 ** (-snr_db / 20))
    return out


def stretched(x: Array, factor: float) -> Array:
    """Played faster by `factor` (pitch and formants move with it), by linear interpolation."""
    positions = np.arange(0, len(x) - 1, factor)
    out: Array = np.interp(positions, np.arange(len(x)), x).astype(np.float32)
    return out


def synthetic_voice(seconds: float, rate: int) -> Array:
    """A stand-in for a voice: harmonics of a gliding pitch under moving formants, in syllables. Same every time."""
    t = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.6 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = (500 + 200 * np.sin(2 * np.pi * 1.3 * t), 1500 + 400 * np.sin(2 * np.pi * 0.9 * t + 1), 2500 + 0 * t)
    voice = np.zeros_like(t)
    for k in range(1, 30):
        hertz = k * pitch
        gain = sum(np.exp(-(((hertz - f) / 150) ** 2)) for f in formants) + 0.01
        voice += gain / np.sqrt(k) * np.sin(k * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2.2 * t), 0, None) ** 0.5
    out: Array = (0.1 * voice * syllables / np.abs(voice).max() * 5).astype(np.float32)
    return out
