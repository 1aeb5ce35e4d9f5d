"""The classical reference: decision-directed Wiener filtering with a noise tracker that needs no pause."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DECISION = 0.98
"""Weight of the last frame's estimate in the a-priori signal-to-noise ratio (Ephraim and Malah 1984, eq. 51)."""
FLOOR = 10 ** (-20 / 20)
"""Least gain: -20 dB."""
SPEECH_SNR = 10 ** (15 / 10)
"""A-priori ratio where speech is present (Gerkmann and Hendriks 2012, section IV)."""
NOISE_MEMORY = 0.8
PRESENCE_MEMORY = 0.9


class Wiener:
    """Gain `xi / (1 + xi)`, xi decision-directed (Scalart and Filho 1996), noise by presence probability.

    The noise's power follows `E[|N|^2 | Y] = p N + (1 - p) |Y|^2` with the probability p of speech given fixed priors
    (Gerkmann and Hendriks 2012, eq. 14, 18-23). Frames arrive in order; the state stays between calls.
    """

    def __init__(self, channels: int = 1) -> None:
        self.channels = channels
        self.noise: NDArray[np.float64] | None = None
        self.clean = np.zeros(0)  # power of the last frame's estimate
        self.presence = np.zeros(0)  # its mean over time

    def __call__(self, frames: Tensor) -> Tensor:
        """Spectra `(channels, bins, k)` to their estimates, of the same shape."""
        if frames.shape[-1] == 0:
            return frames
        power = frames.abs().square().double().numpy()
        if self.noise is None:
            self.noise = power[..., :5].mean(-1) + 1e-12
            self.clean, self.presence = np.zeros_like(self.noise), np.zeros_like(self.noise)
        gains = np.stack([self._gain(power[..., k]) for k in range(power.shape[-1])], axis=-1)
        return frames * torch.from_numpy(gains.astype(np.float32))

    def _gain(self, power: NDArray[np.float64]) -> NDArray[np.float64]:
        """The gains of one frame."""
        assert self.noise is not None
        exponent = power / self.noise * (SPEECH_SNR / (1 + SPEECH_SNR))
        p = 1 / (1 + (1 + SPEECH_SNR) * np.exp(-np.minimum(exponent, 200)))
        self.presence = PRESENCE_MEMORY * self.presence + (1 - PRESENCE_MEMORY) * p
        p = np.where(self.presence > 0.99, np.minimum(p, 0.99), p)  # else the tracker could lock
        self.noise = NOISE_MEMORY * self.noise + (1 - NOISE_MEMORY) * (p * self.noise + (1 - p) * power) + 1e-15
        posterior = np.maximum(power / self.noise - 1, 0)
        xi = DECISION * self.clean / self.noise + (1 - DECISION) * posterior
        gain: NDArray[np.float64] = np.maximum(xi / (1 + xi), FLOOR)
        self.clean = gain**2 * power
        return gain
