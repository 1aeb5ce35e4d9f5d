"""Does the CT prior tell strange pictures from known ones, and do calibrated intervals hold what they say?

    python benchmarks/ct_trust.py --data ../shared/data [--slices 2]

Familiarity (`suite/trust.py`): pictures of held-out subjects (trunks, and with them crops of a hand) against the same
pictures spoilt, and against MR brains (where `DATA/mri/volumes` is there). AUC 0.5 is a guess.
The limit of the score was set on the same held-out pictures, the statistics behind it on the training's;
`above 1` is the share of pictures beyond the limit.

Intervals: daps on simulated scans of held-out subjects that the calibration did not use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from domains.ct.calibrate import CalibrationConfig, description, draws, sides
from domains.ct.pipeline import load_ct_prior
from suite.config import load_config
from suite.trust import Familiarity, coverage

Array = NDArray[np.float32]
HAND = "extremity"
"""Held-out subject whose pictures are crops of a hand: unfamiliar as they are, and without an upright pose."""

ROOT = Path(__file__).resolve().parent.parent


def metal(image: Array, rng: np.random.Generator) -> Array:
    """Two pieces of metal inside the object, with the streaks they throw."""
    places = np.argwhere(ndimage.binary_erosion(image > -200, iterations=8))
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    out = image.copy()
    for row, column in places[rng.integers(len(places), size=2)]:
        distance = np.hypot(y - row, x - column)
        streaks = np.sin(np.arctan2(y - row, x - column) * rng.integers(6, 12) + 6 * rng.random())
        out = np.where(distance < rng.integers(3, 7), 3071, out + 400 * streaks * np.exp(-distance / 30))
    return out.clip(-1024, 3071).astype(np.float32)


def brains(folder: Path) -> list[Array]:
    """Slices of MR volumes, scaled to look like soft tissue."""
    out = []
    for file in sorted(folder.glob("*.nii*"))[:6]:
        data = nib.loadsave.load(file).get_fdata(dtype=np.float32)  # type: ignore[attr-defined]
        data = data[..., 0] if data.ndim > 3 else data
        for k in (2, 3):
            image = data[:, :, data.shape[2] * k // 5].T[::-1]
            image = image / np.percentile(image, 99.5)
            out.append(np.where(image < 0.08, -1000, 120 * image - 20).astype(np.float32))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--prior", type=Path)
    args = parser.parse_args()
    if not args.data.is_dir():
        print(f"ct_trust: skipped, there is no folder {args.data}")
        return
    config = load_config(CalibrationConfig, ROOT / "configs" / "ct" / "calibrate.yaml", [], {})
    prior = load_ct_prior(args.prior, torch.device("cpu"))
    known = Familiarity.of(prior)
    assert known is not None, "the prior holds no familiarity; run `diffsuite ct calibrate`"
    found = sides([args.data / "ct"], config)
    pictures = [(name.startswith(HAND), image) for name, images in found.held_out.items() for image in images]
    rng = np.random.default_rng(0)
    spoil: dict[str, Callable[[Array], Array]] = {
        "noise of 150 HU": lambda x: x + ndimage.gaussian_filter(rng.standard_normal(x.shape), 0.7) * 150,
        "metal and its streaks": lambda x: metal(x, rng),
        "blurred by 2 pixels": lambda x: ndimage.gaussian_filter(x, 2),
        "enlarged 1.7 times": lambda x: ndimage.zoom(x, 1.7, order=1),
        "reduced 0.5 times": lambda x: ndimage.zoom(ndimage.gaussian_filter(x, 0.8), 0.5, order=1),
        "turned by 90 degrees": lambda x: np.rot90(x),
        "upside down": lambda x: x[::-1],
    }
    families = {name: [(hand, np.asarray(f(x), np.float32)) for hand, x in pictures] for name, f in spoil.items()}
    families["nothing but noise"] = [
        (False, 300 * rng.standard_normal((128, 128)).astype(np.float32)) for _ in range(8)
    ]
    if (args.data / "mri" / "volumes").is_dir():
        families["MR brains"] = [(False, image) for image in brains(args.data / "mri" / "volumes")[:8]]

    def scores(images: list[tuple[bool, Array]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        hands = np.array([hand for hand, _ in images])
        return np.array([float(known.score(description(prior, x))) for _, x in images]), hands

    usual, hands = scores(pictures)
    print("| pictures | AUC, trunks | above 1 | AUC with the hand |\n|---|---|---|---|")
    print(f"| held-out, as they are | | {np.mean(usual[~hands] > 1):.2f} | |")
    for name, images in families.items():
        strange, which = scores(images)
        aucs = [
            stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
            for a, b in ((strange[~which], usual[~hands]), (strange, usual))
        ]
        print(f"| {name} | {aucs[0]:.3f} | {np.mean(strange[~which] > 1):.2f} | {aucs[1]:.3f} |", flush=True)

    scale = prior.card.calibration["intervals"]["scale"]
    used = set(prior.card.calibration["intervals"]["data"])
    print("\n| subject | coverage of 90 % | after calibration | mean std (HU) |\n|---|---|---|---|")
    for name in (n for n in found.held_out if n not in used):
        here = config.model_copy(update={"intervals": [name.replace("[", "[[]")], "slices": args.slices})
        mean, std, truth = (torch.cat(v) for v in zip(*draws(prior, found, here)[1], strict=True))
        before, after = (coverage(mean, std, truth, here.samples, scale=s) for s in (1.0, scale))
        print(f"| {name} | {before:.3f} | {after:.3f} | {float(std.mean()):.1f} |", flush=True)


if __name__ == "__main__":
    main()
