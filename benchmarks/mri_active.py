"""Quality against the number of lines: active subsampling, random, equispaced and Poisson-disc masks, on held-out subjects.

    python benchmarks/mri_active.py --data ../shared/data/mri [--subjects "p19 T1"] [--start 10] [--step 10] [--rounds 3]
        [--particles 8] [--halve] [--json FILE]

A slice, 8 simulated coils, synthetic phase, 30 dB. Every choice starts from the `--start` central lines; active adds `--step` lines
in each round, from `mri next-lines` on what is acquired so far. Random and equispaced masks hold as many lines; the Poisson mask,
which needs two phase-encoding directions, as many points. All are reconstructed by `dds`: PSNR and SSIM by fastMRI's convention,
`error` the true relative error of the magnitude, `expected` the error the particles expected (the stop rule of
`next-lines --error`).
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.mri.containers import KSpace, Volume
from domains.mri.data import read_volume
from domains.mri.fastmri import Simulated
from domains.mri.masks import sampling_mask
from domains.mri.metrics import evaluate
from domains.mri.next_lines import particles, propose
from domains.mri.pipeline import ReconstructConfig, load_mri_prior, reconstruct
from domains.mri.problem import Problem, pose
from domains.mri.simulation import SimulationConfig, kspace_of
from suite.prior import Prior

SUBJECTS = {
    "p19 T1": "openms-p19_T1.nii.gz",
    "p19 FLAIR": "openms-p19_FLAIR.nii.gz",
    "long 03 T1": "openms-long_patient03_study2_T1W.nii.gz",
}
COLUMNS = ("subject", "mask", "lines", "psnr", "ssim", "error", "expected")


def halved(volume: Volume) -> Volume:
    h, w = (n // 2 for n in volume.data.shape[1:])
    blocks = volume.data[:, : 2 * h, : 2 * w].reshape(-1, h, 2, w, 2)
    return replace(volume, data=np.maximum(blocks.mean((2, 4)), 0).astype(np.float32))


def problem_of(scan: Simulated, mask: np.ndarray) -> Problem:
    """The full scan with only the lines (or points) of a mask."""
    return pose(KSpace(np.where(mask, scan.kspace, np.complex64(0)), noise_sigma=scan.noise_sigma))


def quality(scan: Simulated, problem: Problem, prior: Prior) -> dict[str, float]:
    out = reconstruct("dds", problem, prior, ReconstructConfig(), ["active"], lambda _: nullcontext())
    found = evaluate(out.image[:, 0].abs().numpy(), scan.target)["metrics"]
    return {"psnr": found["psnr"], "ssim": found["ssim"], "error": found["nmse"] ** 0.5}


def study(subject: str, scan: Simulated, prior: Prior, options: argparse.Namespace) -> list[dict[str, Any]]:
    ny, nx = scan.kspace.shape[-2:]
    acs = options.start / nx
    lines = np.zeros(nx, bool)
    lines[nx // 2 - options.start // 2 :][: options.start] = True
    rows = []

    def add(kind: str, mask: np.ndarray, count: int, **more: float) -> None:
        rows.append(
            {"subject": subject, "mask": kind, "lines": count} | quality(scan, problem_of(scan, mask), prior) | more
        )
        print("| " + " | ".join(_cell(c, rows[-1].get(c)) for c in COLUMNS) + " |", flush=True)

    for number in range(options.rounds + 1):
        count = options.start + number * options.step
        problem = problem_of(scan, lines)
        proposal = propose(problem, particles(problem, prior, options.particles, 10, number), options.step)
        add("active", lines, count, expected=proposal.expected_error[0])
        lines = lines.copy()
        lines[proposal.lines] = True
        if number:
            for kind in ("random1d", "uniform1d", "poisson"):
                share = acs if kind != "poisson" else 0.1
                add(kind, sampling_mask(kind, (ny, nx), nx / count, share, np.random.default_rng(number)), count)
    return rows


def _cell(column: str, value: Any) -> str:
    digits = {"psnr": ".2f", "ssim": ".4f"}.get(column, ".3g")
    return "" if value is None else format(value, digits) if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--subjects", default="", help="only those whose name holds this")
    parser.add_argument("--start", type=int, default=10)
    parser.add_argument("--step", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--halve", action="store_true", help="average over 2 x 2 pixels first: a quarter of the time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.data / "volumes").is_dir():
        print(f"mri_active: skipped, there is no folder {options.data} with the held-out volumes")
        return
    prior, rows = load_mri_prior(None, torch.device("cpu")), []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for subject, file in SUBJECTS.items():
        if options.subjects in subject:
            middle = len(read_volume(options.data / "volumes" / file).data) // 2
            volume = read_volume(options.data / "volumes" / file, slices=slice(middle, middle + 1))
            volume = halved(volume) if options.halve else volume
            rows += study(subject, kspace_of(volume, SimulationConfig(acceleration=1)), prior, options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
