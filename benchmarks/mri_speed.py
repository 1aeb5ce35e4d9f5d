"""Time of one slice: our coil maps and `dds`, beside sigpy's ESPIRiT and L1-wavelet, in turn in one process.

    OMP_NUM_THREADS=2 GOMP_SPINCOUNT=10000 python benchmarks/mri_speed.py --data ../shared/data/mri [--repeats 5]
        [--steps 50,30] [--masks random1d:4,poisson:8] [--json FILE]

A slice of 256 x 256 (long 03), 8 simulated coils, synthetic phase, 30 dB. Ours begins with the raw k-space: noise, whitening, maps
with their choice of support, CG-SENSE, and `dds` with so many network evaluations; sigpy's with the same array: `EspiritCalib`
and `L1WaveletRecon` with their defaults (100 iterations), the weight 1e-3 of a k-space whose largest value is 1. One untimed
round first (compilation, plans); then medians of the repeats, wall and processor seconds. Both may use as many threads as
OMP_NUM_THREADS says; GOMP_SPINCOUNT is what the command line sets: waiting threads soon sleep. Without sigpy its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from domains.mri.containers import KSpace
from domains.mri.data import read_volume
from domains.mri.fastmri import Simulated
from domains.mri.metrics import evaluate
from domains.mri.pipeline import ReconstructConfig, load_mri_prior, reconstruct
from domains.mri.problem import Problem, pose
from domains.mri.simulation import SimulationConfig, kspace_of

VOLUME = "openms-long_patient03_study2_T1W.nii.gz"
WEIGHT = 1e-3
COLUMNS = ("scan", "job", "wall s", "cpu s", "psnr")
Job = Callable[[], NDArray[np.float32] | None]


def ours(scan: Simulated, steps: list[int]) -> dict[str, Job]:
    prior = load_mri_prior(None, torch.device("cpu"))
    posed: list[Problem] = []

    def maps() -> None:
        posed[:] = [pose(KSpace(scan.kspace, noise_sigma=scan.noise_sigma))]

    def dds(count: int) -> NDArray[np.float32]:
        config = ReconstructConfig(steps=count)
        out = reconstruct("dds", posed[0], prior, config, ["speed"], lambda _: nullcontext())
        image: NDArray[np.float32] = out.image[:, 0].abs().numpy()
        return image

    return {"maps": maps} | {f"dds {n}": lambda n=n: dds(n) for n in steps}  # type: ignore[misc]


def sigpys(scan: Simulated) -> dict[str, Job]:
    from sigpy.mri.app import EspiritCalib, L1WaveletRecon

    found: list[NDArray[np.complex64]] = []
    kspace, scale = scan.kspace[0], np.abs(scan.kspace).max()

    def maps() -> None:
        found[:] = [EspiritCalib(kspace, show_pbar=False).run()]

    def wavelet() -> NDArray[np.float32]:
        image = L1WaveletRecon(kspace / scale, found[0], WEIGHT, show_pbar=False).run()
        return np.asarray(np.abs(image)[None] * scale, np.float32)

    return {"sigpy maps": maps, "sigpy wavelet": wavelet}


def medians(jobs: dict[str, Job], repeats: int, target: NDArray[np.float32]) -> list[dict[str, object]]:
    """The jobs in turn, `repeats` times after an untimed round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    psnr: dict[str, float] = {}
    for number in range(repeats + 1):
        for name, job in jobs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            image = job()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                times[name].append(spent)
            elif image is not None:
                psnr[name] = evaluate(image, target)["metrics"]["psnr"]
    return [
        {
            "job": name,
            "wall s": round(statistics.median(w for w, _ in spent), 2),
            "cpu s": round(statistics.median(c for _, c in spent), 2),
            "psnr": round(psnr[name], 2) if name in psnr else "",
        }
        for name, spent in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", default="50,30")
    parser.add_argument("--masks", default="random1d:4,poisson:8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    path = options.data / "volumes" / VOLUME
    if not path.is_file():
        print(f"mri_speed: skipped, there is no file {path}")
        return
    peer = find_spec("sigpy") is not None
    print(f"{torch.get_num_threads()} threads" + ("" if peer else "; sigpy is left out: it is not installed"))
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    rows = []
    middle = len(read_volume(path).data) // 2
    volume = read_volume(path, slices=slice(middle, middle + 1))
    for word in options.masks.split(","):
        kind, _, acceleration = word.partition(":")
        scan = kspace_of(volume, SimulationConfig(acceleration=float(acceleration), mask=kind))
        jobs = ours(scan, [int(n) for n in options.steps.split(",")]) | (sigpys(scan) if peer else {})
        for row in medians(jobs, options.repeats, scan.target):
            rows.append({"scan": f"{kind} {acceleration}x"} | row)
            print("| " + " | ".join(str(rows[-1][column]) for column in COLUMNS) + " |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
