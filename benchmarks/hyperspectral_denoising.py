"""Hyperspectral denoising beside its classical peers, on scenes the prior was not trained on.

    python benchmarks/hyperspectral_denoising.py --data ../shared/data/hyperspectral --json result.json

Every method sees the same noisy cube: bands scaled to 0..1 by their own minimum and maximum, noise of the standard cases added
there (NumPy seed 0 for the Gaussian cases, 1 for the others). PSNR is the mean over bands, range 1.

    svd       projection on the whitened subspace, rank from the data
    nlm       non-local means on the same eigen-images
    floor     whitened SVD and non-local means, the best rank chosen with the truth (an oracle), noise by regression only
    median    3 x 3 median of each band, then `floor`
    bm3d      BM3D on the whitened eigen-images (after FastHyDe, Zhuang and Bioucas-Dias 2018)
    bm4d      BM4D on the cube (Maggioni et al. 2013), noise of each case by regression
    rpca      low rank plus sparse by inexact ALM (Lin, Chen and Ma 2010)
    subspace  this suite: noise model and diffusion prior
    hir_diff  the same prior on representative bands, guided by data and total variation
    finch     the joint prior of space and spectrum (with --joint-prior, another than the shipped one)
    dds2m     a network fitted to the noisy cube alone
    ...@N     any of these four with N evaluations at most, as in `finch@1`

Every method takes its noise from the noisy cube. The table tells PSNR; `--seconds` adds the processor time.
bm3d and bm4d need the packages of that name (free for non-commercial use; the suite itself never imports them).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.data import read_cube
from domains.hyperspectral.eigen_images import nlm
from domains.hyperspectral.methods import DenoiseConfig
from domains.hyperspectral.metrics import evaluate
from domains.hyperspectral.pipeline import denoise, estimate_noise, load_hyperspectral_prior, project
from domains.hyperspectral.simulation import SimulationConfig, band_range, degrade
from domains.hyperspectral.statistics import regression_noise

Floats = NDArray[np.float32]
SCENES = ("aviris_gulfport_airport4.mat", "hydice_urban_80x100.mat")
CASES = ("gaussian:30", "gaussian:50", "gaussian:70", "noniid", "stripe", "deadline", "impulse", "mixture")


def psnr(x: Floats, clean: Floats) -> float:
    return float((-10 * np.log10(np.square(x - clean).mean((0, 1)))).mean())


def middle(values: Floats, crop: int | None, bands: int | None) -> Floats:
    """`crop` rows and columns from the middle, the first `bands` bands; all of them for None."""
    rows, columns = (slice(max(0, (n - (crop or n)) // 2), None) for n in values.shape[:2])
    return values[rows, columns, :bands][:crop, :crop]


def floor(noisy: Floats, clean: Floats, most: int = 10) -> Floats:
    """Whitened SVD and NLM; the rank with the best PSNR against the truth."""
    rows, columns, bands = noisy.shape
    flat = noisy.reshape(-1, bands)
    mean, sigma = flat.mean(0), regression_noise(flat)
    whitened = (flat - mean) / sigma
    basis = np.linalg.svd(np.cov(whitened.T))[0][:, :most].astype(np.float32)
    images = nlm((whitened @ basis).T.reshape(most, rows, columns), np.ones(most)).reshape(most, -1).T
    results = [mean + sigma * (images[:, :k] @ basis[:, :k].T) for k in range(1, most + 1)]
    return max((x.reshape(noisy.shape) for x in results), key=lambda x: psnr(x, clean))


def median(noisy: Floats, clean: Floats) -> Floats:
    return floor(median_filter(noisy, (3, 3, 1)), clean)


def bm3d_eigen(noisy: Floats, _clean: Floats) -> Floats:
    import bm3d

    cube = Cube(noisy)
    model = estimate_noise(cube, np.ones(noisy.shape[2], bool))
    images, noise, _, _ = project(cube, model)
    found = [bm3d.bm3d(image, float(s)) for image, s in zip(images, noise, strict=True)]
    x = model.mean + model.unit * np.tensordot(np.stack(found).astype(np.float32), model.basis, axes=(0, 1))
    return np.asarray(x, np.float32)


def bm4d_cube(noisy: Floats, _clean: Floats) -> Floats:
    import bm4d

    sigma = regression_noise(noisy.reshape(-1, noisy.shape[2]))
    scaled = noisy / sigma  # the package takes one deviation for the whole volume
    return np.asarray(bm4d.bm4d(scaled, 1.0) * sigma, np.float32)


def rpca(noisy: Floats, _clean: Floats, rounds: int = 60) -> Floats:
    """`min |L|_* + |S|_1 / sqrt(n)` with `L + S = Y`."""
    y = noisy.reshape(-1, noisy.shape[2]).astype(np.float64)
    weight, norm = float(1 / np.sqrt(len(y))), float(np.linalg.norm(y, 2))
    dual = y / max(norm, np.abs(y).max() / weight)
    mu, sparse = 1.25 / norm, np.zeros_like(y)
    for _ in range(rounds):
        u, s, v = np.linalg.svd(y - sparse + dual / mu, full_matrices=False)
        low = (u * np.maximum(s - 1 / mu, 0)) @ v
        left = y - low + dual / mu
        sparse = np.sign(left) * np.maximum(np.abs(left) - weight / mu, 0)
        dual += mu * (y - low - sparse)
        mu = min(1.5 * float(mu), 1e7)
        if np.linalg.norm(y - low - sparse) < 1e-6 * np.linalg.norm(y):
            break
    return low.reshape(noisy.shape).astype(np.float32)


def ours(words: str, path: Path | None = None) -> Callable[[Floats, Floats], Floats]:
    """A method of this suite, `NAME` or `NAME@EVALUATIONS`."""
    method, _, steps = words.partition("@")
    prior = load_hyperspectral_prior(path, torch.device("cpu"), method)
    config = DenoiseConfig(steps=int(steps) if steps else None)

    def run(noisy: Floats, _clean: Floats) -> Floats:
        result = denoise(Cube(noisy), method, prior, config, "bench", lambda _: nullcontext())
        return np.asarray(result.data, np.float32)

    return run


PEERS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "floor": floor, "median": median, "bm3d": bm3d_eigen, "bm4d": bm4d_cube, "rpca": rpca,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hyperspectral"))
    parser.add_argument("--scenes", nargs="+", default=list(SCENES))
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--methods", nargs="+", default=["svd", "nlm", "floor", "median", "bm3d", "subspace"])
    parser.add_argument("--prior", type=Path, help="Of subspace and hir_diff.")
    parser.add_argument("--joint-prior", type=Path, help="Of finch.")
    parser.add_argument("--seconds", action="store_true", help="Print processor seconds beside the PSNR.")
    parser.add_argument("--crop", type=int, help="So many rows and columns from the middle of each scene.")
    parser.add_argument("--bands", type=int, help="So many neighbouring bands, the first ones.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"hyperspectral_denoising: skipped, there is no folder {args.data}")
        return
    torch.set_num_threads(args.threads)
    priors = {"subspace": args.prior, "hir_diff": args.prior, "finch": args.joint_prior}
    methods = {m: PEERS[m] if m in PEERS else ours(m, priors.get(m.partition("@")[0])) for m in args.methods}
    rows = []
    print(f"| scene | case | noisy | {' | '.join(args.methods)} |", "|---" * (3 + len(args.methods)) + "|", sep="\n")
    for scene in args.scenes:
        values = middle(read_cube(args.data / scene).values(), args.crop, args.bands)
        low, extent = band_range(values)
        clean = (values - low) / extent
        for case in args.cases:
            name, _, sigma = case.partition(":")
            config = SimulationConfig(case=name, sigma=float(sigma or 50), seed=0 if name == "gaussian" else 1)
            noisy = (degrade(values, config) - low) / extent
            cells = [f"{psnr(noisy, clean):.2f}"]
            for method in args.methods:
                began = time.process_time()
                found = methods[method](noisy, clean)
                seconds = time.process_time() - began
                metrics = evaluate(Cube(found), Cube(clean))["metrics"]
                rows.append(
                    {"scene": scene, "case": case, "method": method, "cpu_seconds": round(seconds, 2), **metrics}
                )
                cells.append(f"{metrics['psnr']:.2f}" + (f" ({seconds:.0f} s)" if args.seconds else ""))
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1))
            print(f"| {scene.rsplit('.')[0]} | {case} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
