"""The report of an enhancement: spectrograms of the recording, the result and the classical reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.speech.data import blocks, open_audio
from suite.report import Figure, Report, Stack
from suite.run import Run

SHOWN_SECONDS = 10.0
SHOWN_FILES = 8


def report_of(run: Run, files: Mapping[str, Path], failed: Mapping[str, str]) -> Report:
    """What the page says: what was done, what was noticed, and pictures of the first files."""
    shown = [name for name in files if name not in failed][:SHOWN_FILES]
    facts = {
        "method": run.method,
        "estimator": run.estimator,
        "network evaluations": run.nfe,
        "files": len(files) - len(failed),
        "prior": None if run.prior is None else run.prior["name"],
    }
    reasons = [*(f"{name} failed: {why}" for name, why in failed.items()), *run.warnings]
    return Report(
        title="Speech enhancement",
        verdict="fail" if failed else "check" if run.warnings else "pass",
        reasons=reasons,
        facts=facts,
        metrics=[{"file": name, **values} for name, values in run.metrics.items() if values],
        warnings=run.warnings,
        figures=[_figure(run, name, files[name]) for name in shown],
    )


def _figure(run: Run, name: str, file: Path) -> Figure:
    pictures = {"recording": file, "result": run.output(name), "Wiener filter": run.output(f"reference/{name}")}
    stacks = [Stack(label, spectrogram(path)) for label, path in pictures.items() if path.exists()]
    top = float(stacks[0].slices.max())
    return Figure(
        title=name,
        stacks=stacks,
        windows={"60 dB": (top - 30, 60.0)},
        caption=f"The first {SHOWN_SECONDS:g} s at most; time to the right, frequency upwards, dB.",
        aspect=1.0,
    )


def spectrogram(path: Path) -> NDArray[np.float32]:
    """Power of the first channel's first seconds, dB, `(frequency, time)`, high frequencies on top."""
    audio = open_audio(path)
    x = np.nan_to_num(next(blocks(audio, SHOWN_SECONDS))[:, 0].astype(np.float64))
    size = min(512 * max(1, round(audio.rate / 16000)), max(16, len(x)))
    hop = size // 2
    x = np.pad(x, (0, max(0, size - len(x))))
    frames = np.lib.stride_tricks.sliding_window_view(x, size)[::hop] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    out: NDArray[np.float32] = (10 * np.log10(power.T[::-1] + 1e-10)).astype(np.float32)
    return out
