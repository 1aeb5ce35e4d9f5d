"""What an enhancement took out of a recording: the recording minus the result.

What was taken out of band b follows the speech where its level goes up and down with that of what was left, in a band e,

    c_b = max_e  sum_s cov_s(r_b, l_e) / sqrt(sum_s var_s(r_b) sum_s var_s(l_e)),

r_b and l_e the levels (fourth root of the energy, as loudness goes) of 32 ms frames of the removed signal and of the result,
s stretches of a second. Noise comes and goes on its own, so that c_b is small; a band of the speech that was cut, or speech made
quieter, comes and goes with the rest of the speech.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.speech.data import Audio, Writer, blocks, open_audio
from domains.speech.survey import BANDS_HZ, FRAME_SECONDS

Array = NDArray[np.float32]
Energies = NDArray[np.float64]

LOWEST_HZ = 50.0
"""What lies below is no sound of the recording but its offset."""


@dataclass(frozen=True)
class Removed:
    """What was taken out of a recording.

    Attributes:
        removed, recording: energies in the bands of `BANDS_HZ`, and above them.
        follows: c_b of each band of `BANDS_HZ`, -1 to 1; 0 where nothing was removed.
        limited: samples of the written file beyond full scale.
    """

    removed: Energies
    recording: Energies
    follows: Energies
    limited: int = 0

    @property
    def bands(self) -> list[str]:
        """Names of the bands of `removed` and `recording`."""
        return [*(f"{low:.0f}_{high:.0f}" for low, high in pairwise(BANDS_HZ)), f"above_{BANDS_HZ[-1]:.0f}"]

    def speechlike(self) -> tuple[float, str]:
        """The largest c_b and its band, of those that lost a tenth of their energy: less is the finish of a good result."""
        counts = self.removed[:-1] > 0.1 * self.recording[:-1]
        follows = np.where(counts, self.follows, 0.0)
        return float(follows.max()), self.bands[int(follows.argmax())]

    def metrics(self) -> dict[str, float | None]:
        """Energy taken out over that of the recording, dB, in all and by band."""
        out: dict[str, float | None] = {"removed_db": _decibels(self.removed.sum(), self.recording.sum())}
        for band, part, whole in zip(self.bands, self.removed, self.recording, strict=True):
            out[f"removed_{band}_hz_db"] = _decibels(part, whole)
        return out


def taken_out(audio: Audio, result: Path, output: Path | None = None) -> Removed:
    """Compare a recording with its result, second by second, and write the difference to `output`, a file of the same kind."""
    bands = len(BANDS_HZ) - 1
    removed, recording = np.zeros(bands + 1), np.zeros(bands + 1)
    covariance, spread, loudness = np.zeros((bands, bands)), np.zeros(bands), np.zeros(bands)
    limited = 0
    with nullcontext() if output is None else Writer(output, audio) as writer:
        for x, left in zip(blocks(audio, 1.0), blocks(open_audio(result), 1.0), strict=True):
            x = np.where(np.isfinite(x), x, 0.0).astype(np.float32)
            if writer is not None:
                writer.write(x - left)
                limited = writer.limited
            whole, kept, taken = (band_energies(signal, audio.rate) for signal in (x, left, x - left))
            removed, recording = removed + taken.sum(0), recording + whole.sum(0)
            r, e = (levels - levels.mean(0) for levels in (taken[:, :-1] ** 0.25, kept[:, :-1] ** 0.25))
            covariance, spread, loudness = covariance + r.T @ e, spread + (r**2).sum(0), loudness + (e**2).sum(0)
    scale = np.sqrt(spread[:, None] * loudness)
    follows = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0).max(1)
    return Removed(removed, recording, follows, limited)


def band_energies(x: Array, rate: int) -> Energies:
    """Energies of frames of samples `(n, channels)` in the bands of `BANDS_HZ` and above, `(frames, bands + 1)`."""
    size = max(2, round(FRAME_SECONDS * rate))
    x = np.pad(x, ((0, max(0, size - len(x))), (0, 0)))
    frames = np.lib.stride_tricks.sliding_window_view(x, size, axis=0)[:: size // 2] * np.hanning(size)
    power = (np.abs(np.fft.rfft(frames, axis=-1)) ** 2).sum(1)
    edges = np.searchsorted(np.fft.rfftfreq(size, 1 / rate), (LOWEST_HZ, *BANDS_HZ[1:], np.inf), "right")
    out: Energies = np.stack([power[:, low:high].sum(-1) for low, high in pairwise(edges)], axis=1)
    return out


def _decibels(part: float, whole: float) -> float | None:
    return None if whole <= 0 else float(np.clip(10 * np.log10(max(part, 1e-30) / whole), -100, 100))
