"""Volumes from few views or a limited arc: FBP, SIRT, TV, dds slice by slice and mbir, in three planes.

    python benchmarks/ct_volume.py --data ../shared/data/ct [--subjects abdomen,limb] [--slices 24] [--size 128]
        [--scans 8,4,2,arc90] [--methods fbp,sirt,tv,dds,mbir,mbir-3] [--steps N] [--json FILE]

The folder must hold the volumes held out in configs/ct/train.yaml; `torso` is left out of the training too. A scan is a number of
parallel views over 180 degrees, or `arc90`: 90 views over 90 degrees; 1e5 photons per ray. `mbir-3` averages the prior over three
orientations (about cubic voxels only). PSNR inside the body, of the soft-tissue window and of the full range, is the mean over the
pictures of a plane; jitter is the mean of |e[k+1] - e[k]| over neighbouring slices, e the error in HU. Seconds are of the
processor, all threads together.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from domains.ct.data import Volume, read_volume
from domains.ct.metrics import FULL_RANGE, psnr, window_range
from domains.ct.physics import body_mask
from domains.ct.pipeline import CLASSICAL, STEPS, ReconstructConfig, classical, learned, load_ct_prior, misfit
from domains.ct.problem import GeometryConfig, Problem, pose
from domains.ct.simulation import SimulationConfig, resized, scan_of
from domains.ct.volume import reconstruct_volume

PLANES = ("axial", "coronal", "sagittal")
Array = NDArray[np.float32]


def abdomen(folder: Path) -> Volume:
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(folder / "abdomen_crlm1004_dicom.zip") as archive:
            archive.extractall(scratch)
        return read_volume(scratch)


SUBJECTS: dict[str, Callable[[Path], Volume]] = {
    "abdomen": abdomen,
    "limb": lambda folder: read_volume(folder / "extremity_sts019_crop.nii.gz"),
    "torso": lambda folder: read_volume(folder / "torso_totalseg_example_3mm.nii.gz"),
}


def middle(volume: Volume, slices: int, size: int) -> Volume:
    """Slices from the middle of the stack on a `size` x `size` grid (or the volume's own, if that is coarser)."""
    first = max(0, (len(volume.data) - slices) // 2)
    part = replace(volume.select(slice(first, min(first + slices, len(volume.data)))), headers=None)
    return resized(part, min(size, max(part.data.shape[1:])))


def scanned(volume: Volume, scan: str) -> Problem:
    arc = float(scan.removeprefix("arc")) if scan.startswith("arc") else None
    views = round(arc) if arc else int(scan)
    return pose(scan_of(volume, SimulationConfig(views=views, arc=arc)), GeometryConfig())


def reconstructed(method: str, problem: Problem, steps: int | None) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Image in 1/mm, misfit of each slice, network evaluations."""
    if method in CLASSICAL:
        image = classical(method, problem)
        return image, misfit(problem, image), 0
    prior, mu_water = load_ct_prior(None, torch.device("cpu")), float(problem.scan.mu_water_per_mm or 0)
    identities = [str(k) for k in range(problem.slices)]
    three = method == "mbir-3"
    options = {"orientations": [0, 2, 3]} if three else {}
    config = ReconstructConfig(
        method="mbir" if three else method, steps=3 * (steps or STEPS["mbir"]) if three else steps, options=options
    )  # type: ignore[arg-type]
    if method.startswith("mbir"):
        out = reconstruct_volume(problem, prior, mu_water, config, identities, lambda _: nullcontext())
    else:
        reference = classical("tv", problem)
        out = learned(method, problem, reference, prior, mu_water, config, identities, lambda _: nullcontext())
    return out.image, out.chi2, out.evaluations


def figures(hu: Array, truth: Array) -> dict[str, float]:
    """PSNR by plane and jitter, inside the body."""
    body = np.stack([body_mask(image) for image in truth])
    out = {}
    for axis, plane in enumerate(PLANES):
        for name, (low, high) in (("soft", window_range("soft")), ("full", FULL_RANGE)):
            values = [
                psnr(hu.take(k, axis), truth.take(k, axis), body.take(k, axis), low, high)
                for k in range(truth.shape[axis])
                if body.take(k, axis).mean() > 0.02
            ]
            out[f"{plane}_{name}"] = float(np.mean(values))
    error = hu - truth
    out["jitter"] = float(np.abs(np.diff(error, axis=0))[body[1:] & body[:-1]].mean())
    out["hu_rmse"] = float(np.sqrt(np.mean(error[body] ** 2)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ct"))
    parser.add_argument("--subjects", default="abdomen,limb")
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--scans", default="8,4,2,arc90")
    parser.add_argument("--methods", default="fbp,sirt,tv,dds,mbir")
    parser.add_argument("--steps", type=int, help="evaluations per orientation (default: the method's own)")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not given.data.is_dir():
        print(f"ct_volume: skipped, there is no folder {given.data} with the held-out volumes")
        return
    rows: list[dict[str, Any]] = []
    names = [f"{plane}_{kind}" for kind in ("soft", "full") for plane in PLANES]
    header = ("scan", "method", "nfe", *names, "jitter", "hu_rmse", "chi2", "seconds")
    for subject in given.subjects.split(","):
        volume = middle(SUBJECTS[subject](given.data), given.slices, given.size)
        print(f"\n{subject}: {volume.data.shape} voxels of {volume.spacing_mm} mm (x, y, z), {platform.machine()}\n")
        print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
        for scan in given.scans.split(","):
            problem = scanned(volume, scan)
            for method in given.methods.split(","):
                start = time.process_time()
                image, chi2, nfe = reconstructed(method, problem, given.steps)
                seconds = time.process_time() - start
                hu = (1000 * (image / float(problem.scan.mu_water_per_mm or 0) - 1))[:, 0].numpy()
                row = {"subject": subject, "scan": scan, "method": method, "nfe": nfe, **figures(hu, volume.data)}
                row |= {"chi2": float(chi2.mean()), "seconds": seconds}
                rows.append(row)
                cells = (f"{row[c]:.2f}" if isinstance(row[c], float) else str(row[c]) for c in header)
                print("| " + " | ".join(cells) + " |", flush=True)
                if given.json:
                    given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
