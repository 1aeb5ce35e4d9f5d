"""What is known of a recording before it is enhanced, and what is told about the result without a reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from domains.speech.data import Audio, blocks
from suite.errors import InputError

Array = NDArray[np.float32]

FRAME_SECONDS = 0.032
LOUD = 0.95
"""The level of a recording is the root of this quantile of its frames' energies, so that pauses do not count."""
BANDS_HZ = (0.0, 500.0, 1500.0, 3500.0, 8000.0)


@dataclass(frozen=True)
class Survey:
    """A recording at a glance.

    Attributes:
        level: of its loudest channel; 0 for silence.
        offset: mean of each channel.
        not_finite: samples that are NaN or infinite.
        clipped: share of samples at the recording's largest value in runs of three or more.
    """

    level: float
    offset: Array
    not_finite: int
    clipped: float


def survey(audio: Audio) -> Survey:
    """Read a recording once.

    Raises:
        InputError: it is unreadable, or holds no number at all.
    """
    frame = max(1, round(FRAME_SECONDS * audio.rate))
    energies, bad, peak, runs = [], 0, 0.0, 0
    total = np.zeros(audio.channels)
    for block in blocks(audio, 500 * FRAME_SECONDS):
        finite = np.isfinite(block)
        bad += int((~finite).sum())
        block = np.where(finite, block, 0.0)
        total += block.sum(0, dtype=np.float64)
        energies.append(frame_energies(block - block.mean(0), frame))
        top = float(np.abs(block).max())
        runs, peak = (runs if top == peak else 0 if top > peak else runs), max(peak, top)
        if top == peak > 0:
            runs += flat_samples(np.abs(block) == peak)
    if bad == audio.frames * audio.channels:
        raise InputError(f"{audio.path}: holds no numbers (NaN or infinity throughout); a recording is needed")
    loudest = np.concatenate(energies).max(-1)
    offset = (total / audio.frames).astype(np.float32)
    return Survey(level(loudest), offset, bad, runs / (audio.frames * audio.channels))


def frame_energies(x: Array, frame: int) -> NDArray[np.float64]:
    """Mean square of frames `(n, channels) -> (frames, channels)`, the last one as long as it is."""
    squares = np.square(x, dtype=np.float64)
    starts = np.arange(0, len(x), frame)
    counts = np.minimum(frame, len(x) - starts)
    out: NDArray[np.float64] = np.add.reduceat(squares, starts, axis=0) / counts[:, None]
    return out


def level(energies: NDArray[np.float64]) -> float:
    """Root of the `LOUD` quantile of frame energies."""
    ordered = np.sort(energies)
    return float(np.sqrt(ordered[min(len(ordered) - 1, int(LOUD * len(ordered)))])) if len(ordered) else 0.0


def flat_samples(at_top: NDArray[np.bool_]) -> int:
    """Samples `(n, channels)` in runs of at least three."""
    if len(at_top) < 3:
        return 0
    middle = at_top[:-2] & at_top[1:-1] & at_top[2:]
    inside = np.zeros_like(at_top)
    for shift in range(3):
        inside[shift : len(at_top) - 2 + shift] |= middle
    return int(inside.sum())


def remarks(audio: Audio, found: Survey, *, centred: bool = True, kept: bool = False) -> list[str]:
    """Sentences about what becomes of the recording.

    Args:
        centred: its offset is taken off.
        kept: its samples are kept and others filled in.
    """
    name, said = audio.path.name, []
    if found.level == 0:
        said.append(f"{name}: the recording is silent, and so is the result.")
    elif (offset := float(np.abs(found.offset).max())) > 0.05 * found.level:
        said.append(f"{name}: a constant offset of {offset:.3g} was {'removed' if centred else 'kept'}.")
    if found.level and audio.rate > 16000:
        lost = "what was filled in holds nothing above 8 kHz" if kept else "what lies above 8 kHz was removed"
        said.append(f"{name}: {lost}; the network works at 16 kHz.")
    return said


def faults(audio: Audio, found: Survey, *, clipped: bool = True) -> list[str]:
    """Sentences about what is wrong with the recording, and so with the result; with clipping or without."""
    name, said = audio.path.name, []
    if found.not_finite:
        said.append(f"{name}: {found.not_finite} samples were not numbers and were taken as silence.")
    if clipped and found.level and found.clipped > 1e-4:
        said.append(
            f"{name}: {100 * found.clipped:.2g} % of the samples are clipped; the result keeps that distortion."
        )
    return said


# --- without a reference ----------------------------------------------------------------------------------------------


@dataclass
class Energies:
    """Energies of a recording at `rate`, frame by frame and, in four bands, second by second; filled piece by piece."""

    rate: int
    frames: list[NDArray[np.float64]] = field(default_factory=list)
    bands: list[NDArray[np.float64]] = field(default_factory=list)
    rest: Array | None = None

    def push(self, x: Array) -> None:
        """Samples `(n, channels)`."""
        x = x if self.rest is None else np.concatenate([self.rest, x])
        frame = round(FRAME_SECONDS * self.rate)
        second = self.rate // frame * frame
        whole = len(x) // second
        for k in range(whole):
            part = x[k * second : (k + 1) * second]
            self.frames.append(frame_energies(part, frame).mean(-1))
            self.bands.append(self._in_bands(part))
        self.rest = x[whole * second :]

    def _in_bands(self, x: Array) -> NDArray[np.float64]:
        spectrum = (np.abs(np.fft.rfft(x, axis=0)) ** 2).sum(-1)
        hertz = np.fft.rfftfreq(len(x), 1 / self.rate)
        edges = np.searchsorted(hertz, BANDS_HZ)
        return np.asarray([spectrum[a:b].sum() for a, b in pairwise(edges)])

    def finish(self) -> None:
        """Count what is left as a last, short second."""
        if self.rest is not None and len(self.rest):
            self.frames.append(frame_energies(self.rest, round(FRAME_SECONDS * self.rate)).mean(-1))
            self.bands.append(self._in_bands(self.rest))
            self.rest = None


def changes(before: Energies, after: Energies) -> dict[str, float | None]:
    """How far the noise floor (10th percentile of the frames) and the speech level (95th) moved, dB."""
    old, new = np.concatenate(before.frames), np.concatenate(after.frames)

    def moved(quantile: float) -> float | None:
        a, b = np.quantile(old, quantile), np.quantile(new, quantile)
        return None if a <= 0 else float(np.clip(10 * np.log10(max(b, 1e-30) / a), -100, 100))

    return {"noise_floor_change_db": moved(0.10), "speech_level_change_db": moved(0.95)}


def louder_seconds(before: Energies, after: Energies, factor: float = 2.0) -> list[int]:
    """Seconds in which a band that counts (within 30 dB of the recording's loudest) carries `factor` times its energy."""
    old, new = np.asarray(before.bands), np.asarray(after.bands)
    counts = new > 1e-3 * old.max(initial=0.0)
    return [int(k) for k in np.flatnonzero((counts & (new > factor * old)).any(-1))]


BURIED = 4.0
"""Share of the energy in over that left from which a second is named.

Calibrated on mixtures of the validation speakers at -5, 0 and 5 dB by the default (benchmarks/speech_warnings.py): one in ten good
seconds is named, and two in five lost ones.
"""


def buried_seconds(before: Energies, after: Energies) -> list[int]:
    """Seconds with sound left (2 % of the mean at least) of which the most was removed: what was said may be gone too."""
    old, new = np.asarray(before.bands).sum(-1), np.asarray(after.bands).sum(-1)
    return [int(k) for k in np.flatnonzero((new > 0.02 * new.mean()) & (old > BURIED * new))]
