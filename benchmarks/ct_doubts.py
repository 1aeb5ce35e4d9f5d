"""Do the maps of doubt show what a prior made up?

    python benchmarks/ct_doubts.py --data ../shared/data/ct [--slices 2] [--size 128] [--views 30] [--methods dds,daps]

Planted failures on held-out slices: a prior that hallucinates (it sees a disc of 8 mm radius at a place of the body, true or
not, in every evaluation below a noise level of 100 HU), and an object that it never saw (a piece of metal in the true picture).
For each map (disagreement with TV, wander of the estimate, standard deviation) the AUC of the failure's pixels against the rest
of the body, with the error that the failure made there; and how far an honest run lies beyond the limit.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ct_volume import SUBJECTS, middle
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from domains.ct.page import in_unit
from domains.ct.physics import body_mask
from domains.ct.pipeline import ReconstructConfig, Reconstruction, classical, learned, load_ct_prior
from domains.ct.problem import GeometryConfig, pose
from domains.ct.simulation import SimulationConfig, scan_of
from suite.denoiser import Denoiser
from suite.doubts import beyond, disagreement
from suite.prior import Prior
from suite.trust import interval_factor

Mask = NDArray[np.bool_]


class Liar(Denoiser):
    """A denoiser that sees something there is not: `seen` in place of its estimate, where `seen` is a number."""

    def __init__(self, honest: Any, seen: Tensor, below: float) -> None:
        super().__init__(honest.process)
        self.honest, self.seen, self.below = honest, seen, below
        self.differentiable = honest.differentiable

    def __getattr__(self, name: str) -> Any:
        if name == "honest":
            raise AttributeError(name)
        return getattr(self.honest, name)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        mean: Tensor = self.honest(x, t, y)
        level = torch.exp(-self.process.log_snr(t))
        return torch.where((level < self.below) & ~self.seen.isnan(), self.seen, mean)


def reconstructed(
    truth: NDArray[np.float32], volume: Any, args: Any, method: str, prior: Prior, lie: Tensor | None
) -> tuple[Reconstruction, float]:
    """A reconstruction with its maps, by an honest prior or by one that lies."""
    part = replace(volume, data=truth, headers=None, valid=None)
    problem = pose(scan_of(part, SimulationConfig(views=args.views)), GeometryConfig())
    mu_water = float(problem.scan.mu_water_per_mm or 0)
    config = ReconstructConfig(method=method, samples=args.samples if method == "daps" else 1, maps=True)  # type: ignore[arg-type]
    if lie is not None:
        honest = prior.denoiser
        prior = Prior(prior.net, prior.card, statistics=prior.statistics)
        prior.denoiser = lambda **given: Liar(honest(**given), lie, 0.1)  # type: ignore[method-assign, assignment, return-value]
    names = [f"{k}" for k in range(problem.slices)]
    out = learned(method, problem, classical("tv", problem), prior, mu_water, config, names, lambda _: nullcontext())
    return out, mu_water


def maps(out: Reconstruction, prior: Prior, samples: int) -> dict[str, Tensor]:
    scale = float(prior.card.calibration.get("intervals", {}).get("scale", 1.0))
    sigma = None if out.std is None else scale * interval_factor(samples) / 1.645 * out.std
    objects = out.reference > 0.3 * 0.0206
    found = {"disagreement": disagreement(out.image, out.reference, sigma, objects).abs()}
    found |= {"wander": out.wander} if out.wander is not None else {}
    return found | ({"std": out.std} if out.std is not None else {})


def places(truth: NDArray[np.float32], pixel: float, random: np.random.Generator) -> Mask:
    """A disc of 8 mm radius in even soft tissue of each slice."""
    discs = np.zeros(truth.shape, bool)
    y, x = np.ogrid[: truth.shape[1], : truth.shape[2]]
    for disc, image in zip(discs, truth, strict=True):
        inside = ndimage.binary_erosion(body_mask(image), iterations=math.ceil(16 / pixel))
        even = inside & (np.abs(ndimage.uniform_filter(image, 9)) < 150)
        spots = np.argwhere(even if even.any() else inside)
        row, column = spots[random.integers(len(spots))]
        disc |= (y - row) ** 2 + (x - column) ** 2 <= (8 / pixel) ** 2
    return discs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ct"))
    parser.add_argument("--subject", default="abdomen")
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--views", type=int, default=30)
    parser.add_argument("--methods", default="dds,daps")
    parser.add_argument("--samples", type=int, default=4)
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"ct_doubts: skipped, there is no folder {args.data}")
        return
    torch.set_num_threads(1)
    prior = load_ct_prior(None, torch.device("cpu"))
    volume = middle(SUBJECTS[args.subject](args.data), args.slices, args.size)
    truth, body = volume.data, np.stack([body_mask(image) for image in volume.data])
    discs = places(truth, volume.pixel_size_mm, np.random.default_rng(0))
    planted = torch.from_numpy(discs)[:, None]

    def invented(contrast: float) -> Tensor:
        false = torch.from_numpy(truth)[:, None] + contrast
        return torch.where(planted, prior.to_network(false), torch.nan)

    cases: dict[str, Callable[[], tuple[NDArray[np.float32], Tensor | None]]] = {
        "none": lambda: (truth, None),
        "prior invents +100 HU": lambda: (truth, invented(100)),
        "prior invents +400 HU": lambda: (truth, invented(400)),
        "metal it never saw": lambda: (np.where(discs, np.float32(3000), truth), None),
    }
    print(
        "| method | planted | error there, HU | map | AUC | beyond 3 deviations: there / elsewhere |\n|---|---|---|---|---|---|"
    )
    for method in args.methods.split(","):
        for name, case in cases.items():
            picture, lie = case()
            out, mu_water = reconstructed(picture, volume, args, method, prior, lie)
            error = float(np.abs(in_unit(out.image, mu_water)[:, 0].numpy() - picture)[discs].mean())
            for label, values in maps(out, prior, args.samples).items():
                v = values[:, 0].numpy()
                auc = stats.mannwhitneyu(v[discs], v[body & ~discs]).statistic / discs.sum() / (body & ~discs).sum()
                there, rest = (beyond(values, torch.from_numpy(m)[:, None]) for m in (discs, body & ~discs))
                far = f"{there:.2f} / {rest:.3f}" if label == "disagreement" else ""
                print(f"| {method} | {name} | {error:.0f} | {label} | {auc:.2f} | {far} |", flush=True)


if __name__ == "__main__":
    main()
