"""A prior trained on undersampled k-space alone, beside the same network trained on clean, zero-filled and wavelet images.

    python benchmarks/mri_without_images.py --data ../shared/data/mri [--steps 600] [--rounds 4] [--slices 4] [--folder DIR]
        [--json FILE]

Slices of five volumes at half resolution are scanned (4 coils, random lines at 3x, 30 dB, other lines for every two slices). `mri
train --from-kspace` sees the scans; the others see clean images, or train on what the zero-filled or the wavelet reconstruction
makes of the scans. All have the same network, seed and number of steps. What counts is measured on clean slices of another person:
the denoising error (each part) by noise level, and PSNR of `dds` on scans of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cli import main as cli
from domains.mri.containers import KSpace, Volume
from domains.mri.data import read_volume, write_fastmri, write_nifti
from domains.mri.metrics import evaluate
from domains.mri.pipeline import ReconstructConfig, load_mri_prior, reconstruct
from domains.mri.problem import pose
from domains.mri.simulation import SimulationConfig, kspace_of
from domains.mri.training import normalised, with_phase
from suite.noise import generator
from suite.prior import Prior

TRAIN = (
    "openms-p07_T1_original",
    "openms-p07_T2",
    "openms-p07_FLAIR",
    "openms-long_patient01_study1_FLAIR",
    "seg3d_MR_T1",
)
HELD_OUT = ("openms-p19_T1", "openms-p19_FLAIR")
LEVELS = (0.02, 0.05, 0.1, 0.3, 1.0)
SCAN = SimulationConfig(acceleration=3, coils=4)
KINDS = {
    "clean images": None,
    "k-space alone": {},
    "wavelet images": {"rounds": 1, "first": "wavelet"},
    "zero-filled images": {"rounds": 1, "first": "zero_filled"},
}
SETTINGS = (
    "network.channels=[24,48]", "network.blocks=1", "patch=32", "batch=8",
    "validation_levels=[0.05,0.3]", "sigma_data=0.35", "noise.mean=-2.8", "noise.std=1.6",
    "noise.high=10", "validate_every=300", "data.subjects={openms-p07*: p07, openms-p19*: p19}", "data.validation=[p19]",
)  # fmt: skip


def halved(path: Path, slices: int) -> Volume:
    """Slices evenly spaced over the middle of a volume, averaged over 2 x 2 pixels."""
    volume = read_volume(path)
    count = len(volume.data)
    chosen = np.linspace(0.35 * count, 0.65 * count, slices).astype(int)
    data = volume.data[chosen]
    h, w = (n // 2 for n in data.shape[1:])
    small = data[:, : 2 * h, : 2 * w].reshape(slices, h, 2, w, 2).mean((2, 4))
    return Volume(np.maximum(small, 0).astype(np.float32), np.diag([-2.0, -2.0, 3.0, 1.0]))


def prepare(data: Path, folder: Path, slices: int) -> None:
    """`images/` and `kspace/`."""
    for name in ("images", "kspace"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate((*TRAIN, *HELD_OUT)):
        volume = halved(data / "volumes" / f"{name}.nii.gz", slices if name in TRAIN else 2)
        write_nifti(volume, folder / "images" / f"{name}.nii.gz")
        for first in range(0, len(volume.data), 2):
            pair = replace(volume, data=volume.data[first : first + 2])
            config = SCAN.model_copy(update={"seed": 100 * number + first})
            write_fastmri(kspace_of(pair, config), folder / "kspace" / f"{name}-{first}.h5")


def train(folder: Path, kind: str, settings: dict[str, Any] | None, options: argparse.Namespace) -> Path:
    output = folder / f"{kind.replace(' ', '-')}.safetensors"
    if output.exists():
        return output
    words = [*SETTINGS, f"steps={options.steps}"]
    if settings is None:
        source = ["--data", str(folder / "images")]
    else:
        source = ["--data", str(folder / "kspace"), "--from-kspace"]
        words += [f"kspace.{k}={v}" for k, v in ({"rounds": options.rounds} | settings).items()]
    code = cli(["mri", "train", *source, "-o", str(output), "--quiet", *(w for s in words for w in ("--set", s))])
    if code:
        raise SystemExit(f"mri train ended with {code}")
    return output


@torch.no_grad()
def denoising(prior: Prior, images: list[np.ndarray]) -> dict[str, float]:
    """RMS error of each part on clean slices, by noise level."""
    found: dict[str, float] = {}
    denoiser = prior.denoiser(precision="float32")
    for level in LEVELS:
        squares = []
        for number, image in enumerate(images):
            rng = generator(number, "clean")
            x = with_phase(torch.from_numpy(image)[None, None], rng)
            noisy = x + level * torch.randn(x.shape, generator=rng)
            t = prior.process.time_of_log_snr(torch.full((1, 1, 1, 1), -np.log(level), dtype=torch.float64))
            squares.append(float((denoiser(noisy, t) - x).square().mean()))
        found[f"{level:g}"] = float(np.mean(squares)) ** 0.5
    return found


def psnr(prior: Prior, folder: Path) -> float:
    """Mean over the held-out volumes of the `dds` reconstruction of their scans, maps estimated."""
    values = []
    for number, name in enumerate(HELD_OUT):
        volume = read_volume(folder / "images" / f"{name}.nii.gz")
        scan = kspace_of(volume, SCAN.model_copy(update={"seed": 900 + number}))
        problem = pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma))
        out = reconstruct("dds", problem, prior, ReconstructConfig(), ["a", "b"], lambda _: nullcontext())
        values.append(evaluate(out.image[:, 0].abs().numpy(), scan.target)["metrics"]["psnr"])
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="keep the data and the priors here, and use those there are")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.data / "volumes").is_dir():
        print(f"mri_without_images: skipped, there is no folder {options.data} with volumes")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        prepare(options.data, folder, options.slices)
        images = [
            image for name in HELD_OUT for image in normalised(read_volume(folder / "images" / f"{name}.nii.gz").data)
        ]
        print("| trained on | " + " | ".join(f"RMSE at {level:g}" for level in LEVELS) + " | dds PSNR | minutes |")
        print("|---" * (len(LEVELS) + 3) + "|", flush=True)
        rows = []
        for kind, settings in KINDS.items():
            start = time.process_time()
            prior = load_mri_prior(train(folder, kind, settings, options), torch.device("cpu"))
            minutes = (time.process_time() - start) / 60
            row = {"trained on": kind} | denoising(prior, images) | {"psnr": psnr(prior, folder), "minutes": minutes}
            rows.append(row)
            errors = " | ".join(f"{row[f'{level:g}']:.5f}" for level in LEVELS)
            print(f"| {kind} | {errors} | {row['psnr']:.2f} | {minutes:.1f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
