"""Audio files by libsndfile: what is in one, its samples, and a writer that gives the same kind of file back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from domains.speech.resampling import resample
from domains.speech.wholeness import require_whole, source
from suite.errors import InputError
from suite.files import existing, reading

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".w64", ".rf64", ".au")
FLOATS = ("FLOAT", "DOUBLE", "VORBIS", "OPUS")
"""Sample types that hold values beyond full scale, or need no rounding of ours."""


@dataclass(frozen=True)
class Audio:
    """An audio file's header.

    Attributes:
        path: the file.
        rate: Hz.
        frames: samples per channel.
        channels: how many.
        container, subtype, endian: libsndfile's names ("WAV", "PCM_16", "FILE").
    """

    path: Path
    rate: int
    frames: int
    channels: int
    container: str
    subtype: str
    endian: str

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def is_audio(path: Path) -> bool:
    """An audio file by its name."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def open_audio(path: Path) -> Audio:
    """The header of an audio file.

    Raises:
        InputError: no such file, empty, not audio, without samples, or cut short.
    """
    existing(path)
    with reading(path, "is not a readable audio file; WAV, FLAC or Ogg is needed"):
        info = soundfile.info(source(path))
    if info.frames < 1 or info.samplerate < 1:
        raise InputError(f"{path}: holds no samples; a recording is needed")
    require_whole(path, info.format)
    return Audio(path, info.samplerate, info.frames, info.channels, info.format, info.subtype, info.endian)


def blocks(audio: Audio, seconds: float = 10.0) -> Iterator[NDArray[np.float32]]:
    """The samples `(n, channels)`, block by block, as they are in the file (NaN included).

    Raises:
        InputError: the file ends before its header says, or is damaged.
    """
    count = 0
    with (
        reading(audio.path, "is damaged; its samples cannot be read"),
        soundfile.SoundFile(source(audio.path)) as file,
    ):
        while len(block := file.read(max(1, int(seconds * audio.rate)), dtype="float32", always_2d=True)):
            count += len(block)
            yield block
    if count != audio.frames:
        raise InputError(
            f"{audio.path}: holds {count} of the {audio.frames} samples its header promises; it is cut short"
        )


def read_audio(path: Path, rate: int | None = None) -> tuple[NDArray[np.float32], int]:
    """All samples `(n, channels)` and their rate; resampled when `rate` is given.

    Raises:
        InputError: unreadable, or a sample is not finite.
    """
    audio = open_audio(path)
    samples = np.concatenate(list(blocks(audio)))
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: holds samples that are not numbers (NaN or infinity); finite ones are needed")
    if rate is not None:
        samples = resample(samples, audio.rate, rate)
    return samples, rate or audio.rate


def read_mono(path: Path, rate: int) -> NDArray[np.float32]:
    """The mean of the channels `(n,)` at `rate`."""
    samples, _ = read_audio(path, rate)
    mean: NDArray[np.float32] = samples.mean(1, dtype=np.float32)
    return mean


class Writer:
    """Writes a file of the kind of `like` at `path`, block by block; a context manager.

    Integer sample types are rounded to nearest and limited to full scale; `limited` counts the samples that were.
    """

    def __init__(self, path: Path, like: Audio) -> None:
        self.like, self.path, self.limited = like, path, 0
        self.ceiling = 1.0 - 2.0**-23 if like.subtype not in FLOATS else None

    def __enter__(self) -> Writer:
        like = self.like
        self.file = soundfile.SoundFile(
            str(self.path), "w", like.rate, like.channels, like.subtype, like.endian, like.container
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, samples: NDArray[np.float32]) -> None:
        """Append samples `(n, channels)`."""
        if self.ceiling is not None:
            self.limited += int((np.abs(samples) > 1).sum())
            samples = np.clip(samples, -1.0, self.ceiling)
        self.file.write(samples)


def write_audio(path: Path, samples: NDArray[np.float32], like: Audio) -> int:
    """Write samples `(n, channels)` as a file of the kind of `like`; returns how many had to be limited."""
    with Writer(path, like) as writer:
        step = max(1, 10 * like.rate)
        for first in range(0, len(samples), step):
            writer.write(samples[first : first + step])
    return writer.limited


def audio_files(path: Path) -> list[Path]:
    """The audio files directly in a folder or anywhere below it, sorted; or the one file.

    Raises:
        InputError: there is none.
    """
    if not path.is_dir():
        return [existing(path)]
    found = sorted(file for file in path.rglob("*") if is_audio(file) and not file.name.startswith("."))
    if not found:
        raise InputError(f"{path}: holds no audio file; WAV, FLAC or Ogg is needed")
    return found


def describe(path: Path) -> dict[str, Any]:
    """What `speech info` tells about a file or the files of a folder."""
    if path.is_dir():
        return {"folder": path.name, "files": [describe(file) for file in audio_files(path)]}
    audio = open_audio(path)
    peak, square, bad = 0.0, np.zeros(audio.channels), 0
    offset = np.zeros(audio.channels)
    for block in blocks(audio):
        finite = np.isfinite(block)
        bad += int((~finite).sum())
        clean = np.where(finite, block, 0.0).astype(np.float64)
        peak = max(peak, float(np.abs(clean).max()))
        square += (clean**2).sum(0)
        offset += clean.sum(0)
    rms = np.sqrt(square / audio.frames)
    return {
        "file": path.name,
        "container": audio.container,
        "subtype": audio.subtype,
        "rate_hz": audio.rate,
        "channels": audio.channels,
        "samples": audio.frames,
        "seconds": round(audio.seconds, 3),
        "peak": peak,
        "rms_db": [_decibel(value) for value in rms],
        "offset": [float(value) for value in offset / audio.frames],
        "not_finite": bad,
    }


def _decibel(value: float) -> float | None:
    return None if value <= 0 else round(20 * float(np.log10(value)), 2)
