"""CT quality and time on subjects the prior was not trained on: FBP, TV, the learned methods, and deepinv's with the same prior.

    python benchmarks/ct_quality.py --data ../shared/data/ct [--slices 4] [--methods fbp,tv,dds] [--samples 0] [--json FILE]

The folder must hold the held-out volumes named in configs/ct/train.yaml. Every subject: slices evenly spaced, 256 x 256, 30
parallel views, 1e5 photons per ray. PSNR in the soft-tissue window inside the body (`ct evaluate`); seconds are process
wall time per slice, network and operators included, reading and writing left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.ct.data import Volume, read_volume
from domains.ct.metrics import evaluate
from domains.ct.pipeline import CLASSICAL, ReconstructConfig, classical, learned, load_ct_prior, misfit
from domains.ct.problem import GeometryConfig, pose
from domains.ct.simulation import SimulationConfig, resized, scan_of

COLUMNS = ("psnr_soft", "ssim_soft", "psnr_lung", "psnr_bone", "hu_rmse", "hu_bias")


def subjects(folder: Path, count: int) -> dict[str, Volume]:
    """Held-out subjects, `count` slices each (fewer where a subject has fewer)."""
    out: dict[str, Volume] = {}
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(folder / "abdomen_crlm1004_dicom.zip") as archive:
            archive.extractall(Path(scratch) / "crlm")
        out["abdomen crlm1004"] = read_volume(Path(scratch) / "crlm")
        with zipfile.ZipFile(folder / "mixed_nysbu_slices_dicom.zip") as archive:
            archive.extractall(Path(scratch) / "nysbu")
        for patient in ("A056642", "A058062"):
            files = sorted((Path(scratch) / "nysbu").rglob(f"{patient}*.dcm"))
            for number, file in enumerate(files, 1):
                out[f"abdomen NYSBU {patient} ({number})"] = read_volume(file)
    out["limb sts019"] = read_volume(folder / "extremity_sts019_crop.nii.gz")
    return {name: _thinned(volume, count) for name, volume in out.items()}


def _thinned(volume: Volume, count: int) -> Volume:
    keep = np.linspace(0.15 * len(volume.data), 0.85 * (len(volume.data) - 1), count).round().astype(int)
    keep = np.unique(keep.clip(0, len(volume.data) - 1))
    valid = None if volume.valid is None else volume.valid[keep]
    part = replace(volume, data=volume.data[keep], valid=valid, headers=None, slice_offsets_mm=None)
    size = min(256, max(part.data.shape[1:]))
    return resized(part, size)


def run(name: str, volume: Volume, methods: list[str], views: int, samples: int) -> list[dict[str, Any]]:
    scan = scan_of(volume, SimulationConfig(views=views, photons=1e5))
    problem = pose(scan, GeometryConfig())
    mu_water = float(scan.mu_water_per_mm or 0)
    reference = classical("tv", problem)
    rows = []
    for word in methods:
        method, _, steps = word.partition(":")
        start = time.perf_counter()
        std = None
        if method in CLASSICAL:
            image, chi2, nfe = classical(method, problem), None, 0
        else:
            prior = load_ct_prior(None, torch.device("cpu"))
            several = samples if method == "daps" and samples else 1
            config = ReconstructConfig(method=method, steps=int(steps) if steps else None, samples=several)
            identities = [f"{name} {k}" for k in range(problem.slices)]
            result = learned(method, problem, reference, prior, mu_water, config, identities, lambda _: nullcontext())
            image, chi2, nfe, std = result.image, result.chi2, result.evaluations, result.std
        seconds = (time.perf_counter() - start) / problem.slices
        hu = (1000 * (image / mu_water - 1))[:, 0].numpy()
        chi2 = misfit(problem, image) if chi2 is None else chi2
        row: dict[str, Any] = {
            "subject": name,
            "method": word,
            "nfe": nfe,
            "seconds": seconds,
            "chi2": float(chi2.mean()),
        }
        row |= {column: evaluate(hu, volume.data)["metrics"][column] for column in COLUMNS}
        if std is not None:
            from domains.ct.physics import body_mask

            mask = np.stack([body_mask(image) for image in volume.data])
            spread = 1000 * std[:, 0].numpy() / mu_water
            row["coverage90"] = float((np.abs(hu - volume.data) <= 1.645 * spread)[mask].mean())
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ct"))
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--views", type=int, default=30)
    parser.add_argument("--methods", default="fbp,tv,dds:10,dds,dds:100")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"ct_quality: skipped, there is no folder {options.data} with the held-out volumes")
        return
    rows: list[dict[str, Any]] = []
    header = ("subject", "method", "nfe", *COLUMNS, "chi2", "seconds", "coverage90")
    print(f"{options.views} parallel views, 1e5 photons, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for name, volume in subjects(options.data, options.slices).items():
        for row in run(name, volume, options.methods.split(","), options.views, options.samples):
            rows.append(row)
            cells = [
                f"{row[c]:.3g}" if isinstance(row.get(c), float) and c in ("seconds", "chi2") else _cell(row.get(c))
                for c in header
            ]
            print("| " + " | ".join(cells) + " |", flush=True)
    for method in options.methods.split(","):
        chosen = [row for row in rows if row["method"] == method]
        means = {c: float(np.mean([row[c] for row in chosen])) for c in (*COLUMNS, "chi2", "seconds")}
        print(
            "| mean | "
            + " | ".join(
                [
                    method,
                    str(chosen[0]["nfe"]),
                    *(
                        f"{means[c]:.3g}" if c in ("chi2", "seconds") else _cell(means[c])
                        for c in (*COLUMNS, "chi2", "seconds")
                    ),
                ]
            )
            + " | |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
