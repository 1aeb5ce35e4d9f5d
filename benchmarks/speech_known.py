"""Known degradations undone: the pulls towards the data (dds, stft, both) side by side on clipping, gaps, a band limit and rooms.

    python benchmarks/speech_known.py DATA [--only clip gaps band room] [--guidance dds stft both] [--voices N] [--validation]

DATA holds clean/ and rir/. Voices are those that the shipped prior never saw (`data.exclude` in configs/speech/train.yaml), or with
`--validation` those it was selected on. Every row is the mean over the voices, before and after; seconds are of one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from domains.speech.config import EnhanceConfig
from domains.speech.data import Audio, open_audio, read_mono, write_audio
from domains.speech.informed import enhance_informed
from domains.speech.methods import METHODS
from domains.speech.metrics import evaluate, mean_of
from domains.speech.mixing import reverberant, scaled_to
from domains.speech.pipeline import load_speech_prior
from domains.speech.posterior import band_limit
from suite.run import Stopwatch

RATE = 16000
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "speech" / "train.yaml"
ROOMS = ("openair_jack_lyons", "speechbrain_rir1")
Array = np.ndarray


def voices(data: Path, side: str, count: int, seconds: float) -> list[Array]:
    """One clip of each speaker of a side of the split, without its first half second."""
    patterns = yaml.safe_load(CONFIG.read_text())["data"][side]
    found = {}
    for file in sorted((data / "clean").glob("*.flac")):
        name = file.stem.split("-")[0]
        if any(fnmatch(name, pattern) for pattern in patterns):
            found.setdefault(name, read_mono(file, RATE)[RATE // 2 :][: int(seconds * RATE)])
    return list(found.values())[:count]


def cases(data: Path, clean: Array, folder: Path) -> Iterator[tuple[str, Array, dict[str, Any]]]:
    """`(name, degraded voice, what is known)`."""
    for share in (0.1, 0.25):
        level = share * float(np.abs(clean).max())
        yield f"clip at {share:g} of the peak", np.clip(clean, -level, level), {"clip": level}
    for milliseconds in (20, 60):
        lost = np.zeros(len(clean), bool)
        starts = range(RATE // 8, len(clean) - RATE // 8, RATE // 4)
        for first in starts:
            lost[first : first + milliseconds * RATE // 1000] = True
        table = folder / f"gaps{milliseconds}.csv"
        table.write_text("".join(f"{first / RATE},{first / RATE + milliseconds / 1000}\n" for first in starts))
        yield f"gaps of {milliseconds} ms, 4 a second", np.where(lost, 0, clean).astype(np.float32), {"gaps": table}
    x = torch.from_numpy(clean)[None]
    yield "band limit 3000 Hz", band_limit(x, 3000.0, RATE).operator(x)[0].numpy(), {"bandwidth": 3000.0}
    rng = np.random.default_rng(0)
    for room in ROOMS:
        file = data / "rir" / f"{room}.flac"
        wet = reverberant(clean, read_mono(file, RATE))
        hiss = scaled_to(rng.standard_normal(len(wet)).astype(np.float32), wet, 30.0)
        yield f"room {room}", wet, {"rir": file}
        yield f"room {room}, noise at 30 dB", wet + hiss, {"rir": file}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/speech"))
    parser.add_argument("--only", nargs="+", default=["clip", "gaps", "band", "room"])
    parser.add_argument("--guidance", nargs="+", default=["dds", "stft", "both"])
    parser.add_argument("--voices", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=METHODS["posterior"].steps)
    parser.add_argument("--validation", action="store_true")
    given = parser.parse_args()
    if not given.data.is_dir():
        print(f"speech_known: skipped, there is no folder {given.data}")
        return
    torch.set_num_threads(1)
    prior = load_speech_prior(None, torch.device("cpu"))
    rows: dict[tuple[str, str], list[dict[str, float | None]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for clean in voices(given.data, "validation" if given.validation else "exclude", given.voices, given.seconds):
            for case, degraded, known in cases(given.data, clean, folder):
                if case.split()[0] not in given.only:
                    continue
                kind = Audio(folder / "x.wav", RATE, len(degraded), 1, "WAV", "FLOAT", "FILE")
                write_audio(kind.path, degraded[:, None], kind)
                rows.setdefault((case, "before"), []).append(evaluate(degraded, clean, RATE))
                for guidance in given.guidance:
                    began, config = time.process_time(), EnhanceConfig(guidance=guidance, **known)
                    done = enhance_informed(
                        open_audio(kind.path), folder / "y.wav", prior, "", config, given.steps, Stopwatch()
                    )
                    told = {"chi2": done.metrics["misfit_chi2"], "seconds": time.process_time() - began}
                    after = evaluate(read_mono(folder / "y.wav", RATE), clean, RATE)
                    rows.setdefault((case, guidance), []).append(after | told)
    keys = ("si_sdr", "estoi", "pesq", "lsd", "chi2", "seconds")
    print(f"| degradation | pull | {' | '.join(keys)} |\n|{'---|' * (len(keys) + 2)}")
    for (case, guidance), values in rows.items():
        mean = mean_of(values)
        cells = ["" if (v := mean.get(key)) is None else f"{v:.3f}" if key == "estoi" else f"{v:.2f}" for key in keys]
        print(f"| {case} | {guidance} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
