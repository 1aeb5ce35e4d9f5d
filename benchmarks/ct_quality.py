"""CT quality and time on subjects the prior was not trained on: FBP, TV, the learned methods, and deepinv's with the same prior.

    python benchmarks/ct_quality.py --data ../shared/data/ct [--subjects limb] [--slices 1] [--methods fbp,tv,dds:10,dds]
        [--peers] [--json FILE]

The folder must hold the held-out volumes named in configs/ct/train.yaml. Every subject: slices evenly spaced, 256 x 256, 30
parallel views, 1e5 photons per ray unless told otherwise. `method:N` is a method at N network evaluations. PSNR in the
soft-tissue window inside the body (`ct evaluate`); `seconds` is the wall time and `cpu_s` the processor time of a slice,
network and operators included, reading and writing left out.

`--peers` adds deepinv's DPS and DiffPIR with the shipped prior as their denoiser, on the same whitened measurement and
with this suite's projector as their physics. Their DDRM needs a singular value decomposition, which tomography has not.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.ct.data import Volume, read_volume
from domains.ct.metrics import evaluate
from domains.ct.physics import body_mask, hu_to_mu
from domains.ct.pipeline import CLASSICAL, ReconstructConfig, classical, learned, load_ct_prior, measurement_of, misfit
from domains.ct.problem import GeometryConfig, Problem, pose
from domains.ct.simulation import SimulationConfig, resized, scan_of
from suite.linalg import operator_norm
from suite.prior import Prior

PEERS = "deepinv-dps:100,deepinv-dps-tuned:100,deepinv-diffpir:20,deepinv-diffpir:100,deepinv-ddrm"
PEER_RANGE_HU = (-1024.0, 1976.0)  # what deepinv's [0, 1] stands for; its methods clamp to it
DPS_WEIGHT = 100.0  # the best of 1, 10, 100 and 1000 on extremity_sts022, a training subject; the default is 1
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


def run(
    name: str, volume: Volume, methods: list[str], views: int, photons: float, samples: int
) -> Iterator[dict[str, Any]]:
    """The rows of one subject."""
    scan = scan_of(volume, SimulationConfig(views=views, photons=photons))
    problem = pose(scan, GeometryConfig())
    mu_water = float(scan.mu_water_per_mm or 0)
    prior = load_ct_prior(None, torch.device("cpu"))
    reference = classical("tv", problem)
    for word in methods:
        method, _, steps = word.partition(":")
        row: dict[str, Any] = {"subject": name, "method": word}
        if method == "deepinv-ddrm":
            yield row | {"nfe": "no SVD for tomography"}
            continue
        cpu, start = time.process_time(), time.perf_counter()
        std = None
        if method in CLASSICAL:
            image, chi2, nfe = classical(method, problem), None, 0
        elif method.startswith("deepinv-"):
            image, nfe = peer(method, int(steps), problem, prior, mu_water)
            chi2 = None
        else:
            several = samples if method == "daps" and samples else 1
            settings = {"method": method, "steps": int(steps) if steps else None, "samples": several}
            config = ReconstructConfig.model_validate(settings)
            identities = [f"{name} {k}" for k in range(problem.slices)]
            result = learned(method, problem, reference, prior, mu_water, config, identities, lambda _: nullcontext())
            image, chi2, nfe, std = result.image, result.chi2, result.evaluations, result.std
        row["seconds"] = (time.perf_counter() - start) / problem.slices
        row["cpu_s"] = (time.process_time() - cpu) / problem.slices
        hu = (1000 * (image / mu_water - 1))[:, 0].numpy()
        chi2 = misfit(problem, image) if chi2 is None else chi2
        row |= {"nfe": nfe, "chi2": float(chi2.mean())}
        row |= {column: evaluate(hu, volume.data)["metrics"][column] for column in COLUMNS}
        if std is not None:
            mask = np.stack([body_mask(image) for image in volume.data])
            spread = 1000 * std[:, 0].numpy() / mu_water
            row["coverage90"] = float((np.abs(hu - volume.data) <= 1.645 * spread)[mask].mean())
        yield row


def peer(method: str, steps: int, problem: Problem, prior: Prior, mu_water: float) -> tuple[torch.Tensor, int]:
    """A deepinv method's reconstruction in 1/mm, and its network evaluations."""
    import _deepinv as d

    low, high = (float(prior.to_network(torch.tensor(hu))) for hu in PEER_RANGE_HU)
    span, autocast = d.Range(low, high - low), prior.denoiser().autocast

    def denoise(u: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return prior.net(u, torch.ones_like(sigma), sigma)

    measurement = measurement_of(problem, prior, mu_water)
    operator, y = measurement.whitened()
    like = torch.zeros(problem.slices, 1, *problem.geometry.image_shape)
    norm = operator_norm(operator, like)
    scale = span.width * norm
    physics = d.OperatorPhysics(operator, norm, float(measurement.noise_level) / scale)
    builds: dict[str, Callable[..., Any]] = {
        "deepinv-dps": d.dps,
        "deepinv-dps-tuned": partial(d.dps, weight=DPS_WEIGHT),
        "deepinv-diffpir": d.diffpir,
    }
    denoiser = d.SharedDenoiser(denoise, span)
    torch.manual_seed(0)
    v = builds[method](denoiser, steps)((y - operator(like + low)) / scale, physics).float().detach()
    return hu_to_mu(prior.from_network(span.low + span.width * v), mu_water), denoiser.evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ct"))
    parser.add_argument("--subjects", default="", help="only those whose name holds this")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--views", type=int, default=30)
    parser.add_argument("--photons", type=float, default=1e5)
    parser.add_argument("--methods", default="fbp,tv,dds:10,dds")
    parser.add_argument("--peers", action="store_true", help=f"add {PEERS}")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"ct_quality: skipped, there is no folder {options.data} with the held-out volumes")
        return
    methods = options.methods.split(",") + (PEERS.split(",") if options.peers else [])
    if any(method.startswith("deepinv-") for method in methods):
        try:
            import _deepinv  # noqa: F401
        except ImportError as error:
            print(f"deepinv is left out: {error}.\n")
            methods = [method for method in methods if not method.startswith("deepinv-")]
    header = ("subject", "method", "nfe", *COLUMNS, "chi2", "seconds", "cpu_s", "coverage90")
    threads = torch.get_num_threads()
    print(f"{options.views} parallel views, {options.photons:g} photons, {threads} threads, {platform.machine()}\n")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    rows: list[dict[str, Any]] = []
    chosen = {k: v for k, v in subjects(options.data, options.slices).items() if options.subjects in k}
    for name, volume in chosen.items():
        for row in run(name, volume, methods, options.views, options.photons, options.samples):
            rows.append(row)
            print("| " + " | ".join(_cell(c, row.get(c)) for c in header) + " |", flush=True)
    for method in methods:
        mean = _mean([row for row in rows if row["method"] == method], header)
        print("| " + " | ".join(_cell(c, mean.get(c)) for c in header) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _mean(rows: list[dict[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """The row of a method's means over the subjects."""
    mean = {"subject": "mean", "method": rows[0]["method"], "nfe": rows[0]["nfe"]}
    return mean | {c: float(np.mean([r[c] for r in rows])) for c in columns if isinstance(rows[0].get(c), float)}


def _cell(column: str, value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if column in ("seconds", "cpu_s", "chi2") else f"{value:.2f}"


if __name__ == "__main__":
    main()
