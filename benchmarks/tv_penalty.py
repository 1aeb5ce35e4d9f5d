"""How far TV's automatic penalty falls behind the best one, which needs the truth.

    python benchmarks/tv_penalty.py --data ../shared/data/ct

Real slices halved to 128 pixels a side, parallel beam; PSNR in the soft-tissue window inside the body, in dB, with the automatic
penalty and with the best of a grid of multiples of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from domains.ct.data import read_volume
from domains.ct.geometry import equal_angles, parallel
from domains.ct.metrics import evaluate
from domains.ct.physics import log_data, mu_to_hu, simulate
from domains.ct.projector import Projector
from domains.ct.simulation import resized
from domains.ct.tv import level_weights, tv, tv_penalty

SETTINGS = ((30, 1e5), (30, 1e4), (30, 1e6), (15, 1e5), (90, 1e5), (180, 1e5), (60, 1e4))
MULTIPLES = (0.3, 0.45, 0.67, 1.0, 1.5, 2.2, 3.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ct"))
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"tv_penalty: skipped, there is no folder {options.data}")
        return
    losses = []
    print("| slice | views | photons | automatic | best | at multiple |\n|---|---|---|---|---|---|")
    for name, k in (("chest_lidc0314_256", 100), ("chest_lungdx_a0001_softB_256", 30), ("extremity_sts019_crop", 20)):
        volume = resized(read_volume(options.data / f"{name}.nii.gz", slices=slice(k, k + 1)), 128)
        truth, pixel = torch.from_numpy(volume.data), volume.pixel_size_mm
        for views, photons in SETTINGS:
            geometry = parallel(equal_angles(views), (128, 128), pixel)
            counts = simulate(truth, pixel, geometry, photons=photons, generator=torch.Generator().manual_seed(0))
            y, weights = log_data(counts, photons)
            projector = Projector(geometry)
            penalty = tv_penalty(projector, y, level_weights(y, weights))
            found = [
                evaluate(mu_to_hu(tv(projector, y, weights, penalty=m * penalty))[:, 0].numpy(), volume.data)
                for m in MULTIPLES
            ]
            scores = np.array([f["metrics"]["psnr_soft"] for f in found])
            automatic, best = scores[MULTIPLES.index(1.0)], scores.max()
            losses.append(best - automatic)
            print(
                f"| {name} {k} | {views} | {photons:.0e} | {automatic:.2f} | {best:.2f} | {MULTIPLES[scores.argmax()]} |",
                flush=True,
            )
    print(f"\nmean loss {np.mean(losses):.2f} dB, largest {np.max(losses):.2f} dB")


if __name__ == "__main__":
    main()
