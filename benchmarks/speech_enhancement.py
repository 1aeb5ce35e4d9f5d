"""Speech in noise: quality and time of every method and number of steps, beside the noisy input, the Wiener filter and RNNoise.

    python benchmarks/speech_enhancement.py DATA [--prior FILE] [--snr 0 5 10] [--families | --rooms [--blind] [--guidance NAME]]

DATA holds clean/, noise/ and rir/. Speakers and noises are those that the shipped prior never saw (`data.exclude` in
configs/speech/train.yaml), mixed pairwise. RNNoise takes part where the package pyrnnoise can be imported: it is fed 48 kHz, as it
wants, and its output is aligned by the lag of largest correlation. Every metric of the suite is printed, all together, with the
seconds of one core per second of sound. `--families` compares the anchored processes instead, all by the same network at 1 to 8
evaluations of dpmpp-2m; `--rooms` undoes every room of rir/.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml

from domains.speech.config import EnhanceConfig
from domains.speech.data import Audio, open_audio, read_mono, write_audio
from domains.speech.informed import enhance_informed
from domains.speech.methods import METHODS, steps_of
from domains.speech.metrics import Metrics, evaluate, mean_of, remaining_reverberation
from domains.speech.mixing import fitted, reverberant, scaled_to
from domains.speech.pipeline import Filter, Restorer, choose_method, enhance_samples, load_speech_prior
from domains.speech.resampling import resample
from domains.speech.spectrum import Spectrum
from suite.grid import time_grid
from suite.multistep import DPMpp2M
from suite.prior import Prior
from suite.process import PROCESSES, process
from suite.restoration import Plan
from suite.run import Stopwatch

RATE = 16000
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "speech" / "train.yaml"
Array = np.ndarray


def held_out(folder: Path, separator: str) -> list[Path]:
    """Files whose speaker or recording the configuration excludes from training."""
    patterns = yaml.safe_load(CONFIG.read_text())["data"]["exclude"]
    files = sorted(folder.glob("*.flac"))
    return [file for file in files if any(fnmatch(_source(file, separator), pattern) for pattern in patterns)]


def _source(file: Path, separator: str) -> str:
    stem = file.stem
    if separator == "-":
        return stem.split("-")[0]
    return stem[:-2] if stem[-2] == "-" and stem[-1].isupper() else stem


def mixtures(data: Path, snr: float) -> Iterator[tuple[Array, Array]]:
    """`(noisy, clean)`, one for each held-out noise."""
    voices, noises = held_out(data / "clean", "-"), held_out(data / "noise", "")
    rng = np.random.default_rng(0)
    for number, noise in enumerate(noises):
        clean = read_mono(voices[number % len(voices)], RATE)
        clip = read_mono(noise, RATE)
        yield clean + scaled_to(fitted(clip, len(clean), int(rng.integers(len(clip)))), clean, snr), clean


def wiener(x: Array) -> Array:
    stream = Filter(Spectrum(), 1)
    out = [stream.push(torch.from_numpy(x)[None]), stream.finish()]
    return torch.cat(out, dim=1)[0].numpy()


def rnnoise() -> Callable[[Array], Array] | None:
    """RNNoise (Valin 2018) by the package pyrnnoise, or None; its module of C calls alone, without what it reads files with."""
    found = importlib.util.find_spec("pyrnnoise")
    if found is None or found.origin is None:
        return None
    spec = importlib.util.spec_from_file_location("rnnoise_calls", Path(found.origin).with_name("rnnoise.py"))
    if spec is None or spec.loader is None:
        return None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    size = library.FRAME_SIZE

    def run(x: Array) -> Array:
        high = resample(x, RATE, 48000)
        frames = np.pad(high, (0, -len(high) % size + 2 * size)).reshape(-1, size)
        state = library.create()
        frames = np.clip(frames * 32768, -32768, 32767).astype(np.int16)
        out = np.concatenate([library.process_mono_frame(state, frame)[0] for frame in frames])
        library.destroy(state)
        low = resample(out.astype(np.float32) / 32768, 48000, RATE)
        lags = range(0, 800)
        best = max(lags, key=lambda lag: float(np.dot(low[lag : lag + len(x) - 800], x[: len(x) - 800])))
        return np.pad(low[best:], (0, len(x)))[: len(x)]

    return run


Guidance = Literal["dds", "stft", "both"] | None
Methods = dict[str, Callable[[Array], Array]]


def by_plan(prior: Prior, plan: Plan) -> Callable[[Array], Array]:
    return lambda x: enhance_samples(x[:, None], RATE, Restorer(prior, plan, 0, ""))[:, 0]


def families(prior: Prior) -> Methods:
    """Every anchored process at a few numbers of steps."""
    found: Methods = {}
    for name in PROCESSES:
        proc = process(name)
        if proc.anchored:
            for steps in (1, 2, 4, 8):
                grid = time_grid(proc, steps, "logsnr", log_snr_range=(-5.0, 3.0))
                found[f"{name} {steps}"] = by_plan(prior, Plan(proc, DPMpp2M(), grid))
    return found


def methods(prior: Prior) -> Methods:
    """Everything that is compared, by name."""

    def ours(name: str, steps: int) -> Callable[[Array], Array]:
        return by_plan(prior, METHODS[name].plan(steps))

    found: Methods = {"noisy": lambda x: x, "Wiener": wiener}
    other = rnnoise()
    if other is not None:
        found["RNNoise"] = other
    found["predict"] = ours("predict", 1)
    found |= {f"bridge {n}": ours("bridge", n) for n in (1, 2, 4, 8)}
    return found | {"storm 8": ours("storm", 8), "sgmse 30": ours("sgmse", 30)}


def show(name: str, row: Metrics) -> None:
    cells = [
        "–" if value is None else f"{value:.3f}" if key == "estoi" else f"{value:.2f}" for key, value in row.items()
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def compare(data: Path, compared: Methods, snr: float) -> None:
    """One table."""
    pairs = list(mixtures(data, snr))
    print(f"\n{len(pairs)} mixtures at {snr:g} dB\n")
    for number, (name, run) in enumerate(compared.items()):
        rows, seconds, length = [], 0.0, 0.0
        for noisy, clean in pairs:
            began = time.process_time()
            result = run(noisy)
            seconds, length = seconds + time.process_time() - began, length + len(noisy) / RATE
            rows.append(evaluate(result, clean, RATE, noisy))
        row = mean_of(rows) | {"real-time factor": seconds / length}
        if number == 0:
            print(f"| method | {' | '.join(row)} |\n|{'---|' * (len(row) + 1)}")
        show(name, row)


def rooms(data: Path, prior: Prior, folder: Path, blind: bool, pattern: str, guidance: Guidance) -> None:
    """Every room undone, known or blindly: the same held-out voice before and after.

    Blindly, nothing tells when the sound left: the reference is delayed by the response's direct sound.
    """
    voice = held_out(data / "clean", "-")[0]
    clean = read_mono(voice, RATE)[: 5 * RATE]
    keys = ("si_sdr", "estoi", "pesq", "drr")
    print(f"| room | {' | '.join(f'{key} before | after' for key in keys)} |\n|{'---|' * 9}", flush=True)
    for file in sorted((data / "rir").glob(pattern)):
        response = read_mono(file, RATE)
        wet = reverberant(clean, response)
        kind = Audio(folder / "wet.wav", RATE, len(wet), 1, "WAV", "FLOAT", "FILE")
        write_audio(kind.path, wet[:, None], kind)
        config = EnhanceConfig(guidance=guidance, blind_reverb=blind, rir=None if blind else file)
        steps = steps_of(choose_method(config), config)
        enhance_informed(open_audio(kind.path), folder / "dry.wav", prior, "", config, steps, Stopwatch())
        delay = int(np.abs(response).argmax()) if blind else 0
        truth = np.concatenate([np.zeros(delay, np.float32), clean])[: len(clean)]
        before, after = (
            evaluate(x, truth, RATE) | {"drr": remaining_reverberation(x, truth, RATE)}
            for x in (wet, read_mono(folder / "dry.wav", RATE))
        )
        show(file.stem, {f"{key} {when}": row[key] for key in keys for when, row in (("b", before), ("a", after))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/speech"))
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.0, 5.0, 10.0])
    parser.add_argument("--families", action="store_true")
    parser.add_argument("--rooms", action="store_true")
    parser.add_argument("--blind", action="store_true", help="with --rooms: the room is not told")
    parser.add_argument("--guidance", choices=["dds", "stft", "both"], help="with --rooms (default: that of the suite)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these methods, or one pattern of room files")
    given = parser.parse_args()
    if not given.data.is_dir():
        print(f"speech_enhancement: skipped, there is no folder {given.data}")
        return
    torch.set_num_threads(1)
    prior = load_speech_prior(given.prior, torch.device("cpu"))
    if given.rooms:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            pattern = given.only[0] if given.only else "*.flac"
            rooms(given.data, prior, Path(folder), given.blind, pattern, given.guidance)
        return
    compared = families(prior) if given.families else methods(prior)
    compared = {name: run for name, run in compared.items() if given.only is None or name in given.only}
    for snr in given.snr:
        compare(given.data, compared, snr)


if __name__ == "__main__":
    main()
