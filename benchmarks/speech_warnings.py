"""What the fidelity guard's tests are worth, on mixtures of the voices and noises that the shipped prior was selected on.

    python benchmarks/speech_warnings.py DATA [--snr -5 0 5] [--mixtures N] [--skip-draws]

By second: a second of speech counts as lost where the correlation of the result's third-octave envelopes with the truth's,
normalised as in ESTOI, is below 0.5. For the share of energy removed by the default and for the spread of three draws of `storm` it
prints the area under the curve, the threshold that names one good second in ten and the share of the lost ones it names, and what
the thresholds in force name. By file: how far what was removed goes with the speech where only noise is removed (the truth given
out as the result), by the default method, and with each band of the speech cut from its result.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import yaml

from domains.speech.data import Audio, open_audio, read_mono, write_audio
from domains.speech.guard import FOLLOWS, SPREAD_WARNED
from domains.speech.methods import METHODS
from domains.speech.mixing import fitted, scaled_to
from domains.speech.perception import third_octaves
from domains.speech.pipeline import Restorer, enhance_samples, load_speech_prior
from domains.speech.removed import taken_out
from domains.speech.survey import BANDS_HZ, BURIED
from suite.prior import Prior

RATE = 16000
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "speech" / "train.yaml"
Array = np.ndarray


def mixtures(data: Path, snr: float, count: int) -> Iterator[tuple[Array, Array]]:
    """`(noisy, clean)` of the validation side, 8 s at most."""
    patterns = yaml.safe_load(CONFIG.read_text())["data"]["validation"]
    voices = [f for f in sorted((data / "clean").glob("*.flac")) if f.stem.split("-")[0] in patterns]
    noises = [f for f in sorted((data / "noise").glob("*.flac")) if any(fnmatch(f.stem, p + "*") for p in patterns)]
    rng = np.random.default_rng(0)
    for number in range(count):
        clean = read_mono(voices[number % len(voices)], RATE)[: 8 * RATE]
        clip = read_mono(noises[number % len(noises)], RATE)
        yield clean + scaled_to(fitted(clip, len(clean), int(rng.integers(len(clip)))), clean, snr), clean


def envelopes(x: Array) -> Array:
    """Third-octave envelopes of frames of 32 ms, 16 ms apart, `(frames, 15)`."""
    frames = np.lib.stride_tricks.sliding_window_view(x, 512)[::256] * np.hanning(512)
    bands = third_octaves(np.fft.rfftfreq(512, 1 / RATE)).numpy()
    return np.sqrt(np.abs(np.fft.rfft(frames)) ** 2 @ bands.T)


def normalised(envelope: Array) -> Array:
    """Without mean and of norm 1, each band over time and then each frame over the bands, as in ESTOI."""
    for axis in (0, 1):
        envelope = envelope - envelope.mean(axis, keepdims=True)
        envelope = envelope / (np.linalg.norm(envelope, axis=axis, keepdims=True) + 1e-10)
    return envelope


def seconds_lost(result: Array, clean: Array) -> tuple[Array, Array]:
    """Which whole seconds hold speech, and in which of these it is lost."""
    whole = len(clean) // RATE
    energy = np.square(clean[: whole * RATE]).reshape(whole, RATE).sum(1)
    worth = []
    for k in range(whole):
        a, b = (envelopes(x[k * RATE : (k + 1) * RATE]) for x in (result, clean))
        worth.append(float((normalised(a) * normalised(b)).sum(1).mean()))
    return energy > 0.01 * energy.max(), np.asarray(worth) < 0.5


def by_second(x: Array) -> Array:
    return np.square(x[: len(x) // RATE * RATE]).reshape(-1, RATE).sum(1)


def spread(prior: Prior, noisy: Array) -> tuple[Array, Array]:
    """Mean of three draws of storm, and by second their standard deviation over it."""
    restorer = Restorer(prior, METHODS["storm"].plan(8), 0, "", samples=3)
    mean = enhance_samples(noisy[:, None], RATE, restorer)[:, 0]
    pairs = np.zeros((len(noisy) // RATE + 1, 2))
    for column, pair in restorer.spread.items():
        second = int(column / (restorer.spectrum.rate / restorer.spectrum.column))
        if second < len(pairs):
            pairs[second] += pair
    return mean, np.sqrt(pairs[:, 0] / np.maximum(pairs[:, 1], 1e-20))[: len(noisy) // RATE]


def report(name: str, score: Array, lost: Array, in_force: float) -> None:
    good, bad = score[~lost], score[lost]
    area = np.mean((bad[:, None] > good) + 0.5 * (bad[:, None] == good))
    limit = np.quantile(good, 0.9)
    print(f"{name}: {len(score)} seconds, {len(bad)} lost, area {area:.2f}")
    for what, value in (("one good second in ten", limit), ("in force", in_force)):
        print(
            f"    {what}: {value:.3g} names {np.mean(good > value):.0%} of the good and {np.mean(bad > value):.0%} of the lost"
        )


def without(x: Array, low: float, high: float) -> Array:
    spectrum, hertz = np.fft.rfft(x), np.fft.rfftfreq(len(x), 1 / RATE)
    spectrum[(hertz >= low) & (hertz < high)] = 0
    return np.fft.irfft(spectrum, len(x)).astype(np.float32)


def follows(folder: Path, recording: Array, result: Array) -> float:
    for name, x in (("a", recording), ("b", result)):
        write_audio(folder / f"{name}.wav", x[:, None], Audio(folder, RATE, len(x), 1, "WAV", "FLOAT", "FILE"))
    return float(taken_out(open_audio(folder / "a.wav"), folder / "b.wav").speechlike()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/speech"))
    parser.add_argument("--snr", type=float, nargs="+", default=[-5.0, 0.0, 5.0])
    parser.add_argument("--mixtures", type=int, default=14)
    parser.add_argument("--skip-draws", action="store_true")
    given = parser.parse_args()
    if not given.data.is_dir():
        print(f"speech_warnings: skipped, there is no folder {given.data}")
        return
    torch.set_num_threads(1)
    prior = load_speech_prior(None, torch.device("cpu"))
    removal, spreads = [], []
    cuts = [(low, high + (high == BANDS_HZ[-1])) for low, high in pairwise(BANDS_HZ)]
    print(
        "| SNR | noise alone: largest | default: over the limit | "
        + " | ".join(f"{a:.0f} Hz cut: found" for a, _ in cuts)
        + " |"
    )
    print(f"|{'---|' * (3 + len(cuts))}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for snr in given.snr:
            files = []
            for noisy, clean in mixtures(given.data, snr, given.mixtures):
                result = enhance_samples(noisy[:, None], RATE, Restorer(prior, METHODS["bridge"].plan(2), 0, ""))[:, 0]
                heard, lost = seconds_lost(result, clean)
                left = by_second(result)
                ratio = by_second(noisy) / np.maximum(left, 1e-20)
                kept = heard & (left > 0.02 * left.mean())
                removal.append(np.stack([ratio[kept], lost[kept]]))
                tried = [clean, result, *(without(result, *cut) for cut in cuts)]
                files.append([follows(folder, noisy, x) for x in tried])
                if not given.skip_draws:
                    mean, wide = spread(prior, noisy)
                    heard, lost = seconds_lost(mean, clean)
                    spreads.append(np.stack([wide[heard], lost[heard]]))
            table = np.asarray(files)
            found = " | ".join(f"{share:.0%}" for share in (table[:, 1:] > FOLLOWS).mean(0))
            print(f"| {snr:g} dB | {table[:, 0].max():.2f} | {found} |", flush=True)
    for what, rows, limit in (("removed", removal, BURIED), ("spread", spreads, SPREAD_WARNED)):
        if rows:
            score, lost = np.concatenate(rows, axis=1)
            report(what, score, lost > 0, limit)


if __name__ == "__main__":
    main()
