"""The report of an enhancement: spectrograms of the recording, the result, what was removed, and the classical reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domains.speech.data import blocks, open_audio
from suite.report import Figure, Report, Stack
from suite.run import Run
from suite.verdict import Findings

SHOWN_SECONDS = 10.0
SHOWN_FILES = 8


def report_of(run: Run, findings: Findings, files: Mapping[str, Path], failed: Mapping[str, str]) -> Report:
    """What the page says: what was done, what was noticed, and pictures of the first files."""
    shown = [name for name in files if name not in failed][:SHOWN_FILES]
    facts = {
        "method": run.method,
        "estimator": run.estimator,
        "network evaluations": run.nfe,
        "files": len(files) - len(failed),
        "prior": None if run.prior is None else run.prior["name"],
    }
    columns = {key: None for row in run.metrics.values() for key in row}
    return Report(
        title="Speech enhancement",
        verdict="fail" if failed else findings.verdict,
        reasons=[*(f"{name} failed: {why}" for name, why in failed.items()), *findings.reasons()],
        facts=facts,
        metrics=[{"file": name, **columns, **values} for name, values in run.metrics.items()],
        warnings=[sentence for sentence in run.warnings if sentence not in findings.doubts],
        figures=[_figure(run, name, files[name]) for name in shown],
    )


def _figure(run: Run, name: str, file: Path) -> Figure:
    before, after = first_seconds(file), first_seconds(run.output(name))
    pictures = {"recording": before, "result": after, "removed: recording minus result": before - after}
    reference = run.output(f"reference/{name}")
    if reference.exists():
        pictures["Wiener filter"] = first_seconds(reference)
    rate = open_audio(file).rate
    stacks = [Stack(label, spectrogram(x, rate)) for label, x in pictures.items()]
    top = float(stacks[0].slices.max())
    return Figure(
        title=name,
        stacks=stacks,
        windows={"60 dB": (top - 30, 60.0)},
        caption=f"The first {SHOWN_SECONDS:g} s at most; time to the right, frequency upwards, dB.",
        aspect=1.0,
    )


def first_seconds(path: Path) -> NDArray[np.float64]:
    """What a picture shows of a file: the first channel's first seconds `(n,)`."""
    return np.nan_to_num(next(blocks(open_audio(path), SHOWN_SECONDS))[:, 0].astype(np.float64))


def spectrogram(x: NDArray[np.float64], rate: int) -> NDArray[np.float32]:
    """Power of samples `(n,)`, dB, `(frequency, time)`, high frequencies on top."""
    size = min(512 * max(1, round(rate / 16000)), max(16, len(x)))
    hop = size // 2
    x = np.pad(x, (0, max(0, size - len(x))))
    frames = np.lib.stride_tricks.sliding_window_view(x, size)[::hop] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    out: NDArray[np.float32] = (10 * np.log10(power.T[::-1] + 1e-10)).astype(np.float32)
    return out
