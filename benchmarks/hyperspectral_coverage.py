"""How often the 90 % intervals of the uncertainty cube hold the truth, by scene and noise case.

    python benchmarks/hyperspectral_coverage.py --data ../shared/data/hyperspectral --json result.json

Noise is simulated on the middle rows and the first columns of each scene (bands without NaN), the cube is denoised with
draws, and the values within `intervals.factor` deviations (`run.json`) of the mean are counted; `unscaled` leaves the prior's
calibration out. `width` is the mean half-width over the deviation of the true values. A scene's own noise counts as truth.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from domains.hyperspectral.containers import Cube
from domains.hyperspectral.data import read_cube
from domains.hyperspectral.methods import DenoiseConfig
from domains.hyperspectral.pipeline import denoise, load_hyperspectral_prior
from domains.hyperspectral.simulation import SimulationConfig, band_range, degrade
from suite.trust import coverage, interval_factor

SCENES = ("aviris_gulfport_airport4.mat", "hydice_urban_80x100.mat")
CASES = ("gaussian:30", "gaussian:50", "gaussian:70", "noniid", "mixture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hyperspectral"))
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), help="Names in DATA, or paths.")
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"hyperspectral_coverage: skipped, there is no folder {args.data}")
        return
    torch.set_num_threads(1)
    prior = load_hyperspectral_prior(args.prior, torch.device("cpu"))
    assert prior is not None
    scale = float(prior.card.calibration.get("intervals", {}).get("scale", 1.0))
    rows = []
    print("| scene | case | PSNR (dB) | coverage | unscaled | width |", "|---" * 6 + "|", sep="\n")
    for scene in args.scenes:
        values = read_cube(args.data / scene).values()
        top = max(0, (values.shape[0] - args.crop) // 2)
        values = values[top : top + args.crop, : args.crop]
        values = values[..., np.isfinite(values).all((0, 1)) & (np.ptp(values, axis=(0, 1)) > 0)]
        low, extent = band_range(values)
        truth = torch.from_numpy((values - low) / extent)
        for case in args.cases:
            name, _, sigma = case.partition(":")
            noisy = degrade(values, SimulationConfig(case=name, sigma=float(sigma or 50), seed=args.seed))
            cube, settings = Cube((noisy - low) / extent), DenoiseConfig(samples=args.samples, seed=args.seed)
            out = denoise(cube, "subspace", prior, settings, f"{scene} {case}", lambda _: nullcontext())
            assert out.std is not None
            used = torch.from_numpy(out.model.used)
            mean, std, true = (
                torch.from_numpy(out.data)[..., used],
                torch.from_numpy(out.std)[..., used],
                truth[..., used],
            )
            row = {
                "scene": Path(scene).stem,
                "case": case,
                "psnr": float((-10 * torch.log10((mean - true).square().mean((0, 1)))).mean()),
                "coverage": coverage(mean, std, true, args.samples, scale=scale),
                "unscaled": coverage(mean, std, true, args.samples),
                "width": float(scale * interval_factor(args.samples) * std.mean() / true.std((0, 1)).mean()),
            }
            rows.append(row)
            print("| " + " | ".join(v if isinstance(v, str) else f"{v:.2f}" for v in row.values()) + " |", flush=True)
            if args.json:
                args.json.write_text(json.dumps({"scale": scale, **vars(args), "rows": rows}, indent=1, default=str))


if __name__ == "__main__":
    main()
